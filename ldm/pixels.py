"""Pixels between uint8 and [0, 1]."""

import torch
from torch import Tensor


def from_uint8(images: Tensor) -> Tensor:
    """uint8 → float32 in [0, 1]."""
    return images.float() / 255


def to_uint8(x: Tensor) -> Tensor:
    """[0, 1] → uint8, rounded to the nearest; values outside are clipped."""
    return (x * 255).round().clamp(0, 255).to(torch.uint8)
