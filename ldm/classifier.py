"""The classifier whose 128-wide layer before the logits gives the features of the Fréchet distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ldm.pixels import from_uint8

if TYPE_CHECKING:
    from ldm.artifacts import Artifact

FEATURES = 128


class Classifier(nn.Module):
    """A small convolutional network: (B, C, H, W) in [0, 1] → logits (B, classes)."""

    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()

        def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

        self.body = nn.Sequential(
            *conv(in_channels, width, kernel=5, stride=2),
            *conv(width, width),
            *conv(width, 2 * width, stride=2),
            *conv(2 * width, 2 * width),
            *conv(2 * width, 4 * width, stride=2),
            nn.AdaptiveAvgPool2d(4),  # the size of the grid for 28 × 28 pixels
            nn.Flatten(),
            nn.Linear(64 * width, FEATURES),
            nn.ReLU(),
        )
        self.logits = nn.Linear(FEATURES, classes)
        self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] → (B, 128), after the last ReLU."""
        return self.body(x.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> Classifier:
        """The trained classifier, in evaluation mode. Raises: InputError where the weights do not fit."""
        config = artifact.config
        classifier = cls(config["channels"], config["classes"], config["width"])
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
    matrix = torch.stack([cos, -sin, right, sin, cos, down], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)
