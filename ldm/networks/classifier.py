"""Classifiers whose 128-wide layer before the logits gives the features of the Fréchet distance."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor, nn

from ldm.artifacts import Artifact
from ldm.images import from_uint8
from ldm.networks.options import FEATURES, classifiers


class Classifier(nn.Module):
    """A body, which is a choice among the classifiers, and a layer of logits: (B, C, H, W) in [0, 1] → (B, classes)."""

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
    def from_config(cls, config: Mapping[str, Any], shape: Sequence[int], classes: int) -> Self:
        """Build from a resolved `train_classifier` section, for images (C, H, W). Weights are random."""
        return cls(classifiers.chosen(config, "classifier")(shape), classes)

    @classmethod
    def from_artifact(cls, artifact: Artifact, device: str = "cpu") -> Self:
        """The trained classifier, in evaluation mode. Raises: InputError where the weights do not fit."""
        classifier = artifact.build(lambda config: cls.from_config(config, config["shape"], config["classes"]))
        return artifact.load_into(classifier, device)


def conv_body(shape: Sequence[int], *, width: int) -> nn.Sequential:
    """Five convolutions and a dense layer: (B, C, H, W) → (B, 128), after a ReLU."""

    def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

    layers = [*conv(shape[0], width, kernel=5, stride=2), *conv(width, width), *conv(width, 2 * width, stride=2)]
    layers += [*conv(2 * width, 2 * width), *conv(2 * width, 4 * width, stride=2)]
    layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten()]  # 4 × 4 is the size of the grid for 28 × 28 pixels
    return nn.Sequential(*layers, nn.Linear(64 * width, FEATURES), nn.ReLU())


def residual_body(shape: Sequence[int], *, width: int, blocks: int) -> nn.Sequential:
    """Residual blocks on two grids: (B, C, H, W) → (B, 128), averaged over the grid, without a dense layer.

    A side of an odd number of pixels gets a further line of zeros.
    """
    conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
    odd = [nn.ZeroPad2d((0, shape[2] % 2, 0, shape[1] % 2))] if shape[1] % 2 or shape[2] % 2 else []
    layers = [*odd, nn.PixelUnshuffle(2), conv(4 * shape[0], width), *(Residual(width) for _ in range(blocks))]
    layers += [conv(width, 2 * width, stride=2), *(Residual(2 * width) for _ in range(blocks))]
    layers += [nn.BatchNorm2d(2 * width), nn.ReLU(), conv(2 * width, FEATURES, stride=2)]
    return nn.Sequential(*layers, nn.BatchNorm2d(FEATURES), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Residual(nn.Sequential):
    """x + conv(act(conv(act(x)))): (B, C, h, w) → (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        norm, conv = partial(nn.BatchNorm2d, channels), partial(nn.Conv2d, channels, channels, 3, padding=1, bias=False)
        super().__init__(norm(), nn.ReLU(), conv(), norm(), nn.ReLU(), conv())

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@torch.inference_mode()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 1000) -> Tensor:
    """Apply a function of images in [0, 1] to uint8 images (N, C, H, W), batch by batch; (N, …) on their device."""
    return torch.cat([function(from_uint8(batch)) for batch in images.split(batch_size)])


def augment(x: Tensor, generator: Generator, *, shift: float, rotation: float, scale: float) -> Tensor:
    """Move, turn and scale each image at random, uniformly within bounds; bilinear, zeros outside.

    x: (B, C, H, W). The bounds are of the shift in pixels, the rotation in degrees, and the relative change of size.
    """

    def uniform(bound: float) -> Tensor:
        return bound * (2 * torch.rand(len(x), generator=generator, device=x.device) - 1)

    angle, zoom = uniform(rotation).deg2rad(), 1 + uniform(scale)
    right, down = uniform(2 * shift / x.shape[-1]), uniform(2 * shift / x.shape[-2])
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    high = x.shape[-2] / x.shape[-1]  # the grid's coordinates run from −1 to 1 along both sides
    matrix = torch.stack([cos, -sin * high, right, sin / high, cos, down], 1).view(-1, 2, 3)
    grid = nnf.affine_grid(matrix, list(x.shape), align_corners=False)
    return nnf.grid_sample(x, grid, align_corners=False)
