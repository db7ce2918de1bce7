"""A pre-activation residual network (He et al. 2016, arXiv:1603.05027) whose features are the last channels, averaged over the grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section
from ldm.errors import InputError

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """Its size."""

    width: int = Field(ge=1, description="channels of the first grid, half as fine as the image; the second has twice as many")
    blocks: int = Field(ge=1, description="residual blocks of each of the two grids")


def build(options: Options, shape: tuple[int, ...]) -> nn.Module:
    """The body for images (C, H, W). Raises: InputError unless H and W are even."""
    if shape[1] % 2 or shape[2] % 2:
        raise InputError(f"classifiers.residual: images of {shape[1]} × {shape[2]} pixels do not halve; both sides must be even")

    from ldm.classifiers.residual_model import body

    return body(shape[0], options.width, options.blocks)
