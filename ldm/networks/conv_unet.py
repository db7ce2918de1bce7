"""The tutorial's U-Net: convolution, instance norm, leaky ReLU, and a linear map of the time embedding added in every block."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section
from ldm.errors import InputError

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """Its size."""

    channels: tuple[int, ...] = Field(strict=False, min_length=1, description="channels of each level, from the finest; levels halve the grid")
    blocks: int = Field(ge=1, description="blocks of a level, on the way down and on the way up")
    embedding: int = Field(ge=4, multiple_of=2, description="width of the time embedding")


def build(options: Options, shape: tuple[int, ...]) -> nn.Module:
    """The network for x_t of shape (C, h, w). Raises: InputError where the coarsest grid would be a single place, which has no instance norm."""
    levels = len(options.channels)
    if math.ceil(max(shape[1:]) / 2 ** (levels - 1)) < 2:
        raise InputError(f"networks.conv_unet.channels: {levels} levels are too many for a grid of {shape[1]} × {shape[2]}")

    from ldm.networks.conv_unet_model import ConvUNet

    return ConvUNet(options, shape[0])
