"""Classifiers whose 128-wide layer before the logits gives the features of the Fréchet distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ldm import choices
from ldm.pixels import from_uint8

if TYPE_CHECKING:
    from ldm.artifacts import Artifact

FEATURES = 128


class Classifier(nn.Module):
    """A body, `ldm/classifiers/<name>.py`, and a layer of logits: (B, C, H, W) in [0, 1] → (B, classes)."""

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body = body
        self.logits = nn.Linear(FEATURES, classes)
        self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] → (B, 128)."""
        return self.body(x.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], shape: Sequence[int], classes: int) -> Classifier:
        """Build from a plain `train_classifier` section, for images (C, H, W). Weights are random."""
        name = config["classifier"]
        return cls(choices.build("classifiers", name, config["classifiers"][name], tuple(shape)), classes)

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> Classifier:
        """The trained classifier, in evaluation mode. Raises: InputError where the weights do not fit."""
        classifier = artifact.build(lambda config: cls.from_config(config, config["shape"], config["classes"]))
        artifact.load_into(classifier)
        return classifier.eval()


@torch.inference_mode()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 1000) -> Tensor:
    """Apply a function of images in [0, 1] to uint8 images (N, C, H, W), batch by batch. Returns (N, …) on their device."""
    return torch.cat([function(from_uint8(batch)) for batch in images.split(batch_size)])


def augment(x: Tensor, generator: Generator, *, shift: float, rotation: float, scale: float) -> Tensor:
    """Move, turn and scale each image at random, uniformly within bounds; bilinear, zeros outside.

    x: (B, C, H, W). shift: pixels; rotation: degrees; scale: relative.
    """

    def uniform(bound: float) -> Tensor:
        return bound * (2 * torch.rand(len(x), generator=generator, device=x.device) - 1)

    angle, zoom = uniform(rotation).deg2rad(), 1 + uniform(scale)
    right, down = uniform(2 * shift / x.shape[-1]), uniform(2 * shift / x.shape[-2])
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    high = x.shape[-2] / x.shape[-1]  # the grid's coordinates run from −1 to 1 along both sides
    matrix = torch.stack([cos, -sin * high, right, sin / high, cos, down], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)
