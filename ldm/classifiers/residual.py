"""A pre-activation residual network (He et al. 2016, arXiv:1603.05027) whose features are the last channels, averaged over the grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """Its size."""

    width: int = Field(ge=1, description="channels of the first grid, half as fine as the image; the second has twice as many")
    blocks: int = Field(ge=1, description="residual blocks of each of the two grids")


def build(options: Options, channels: int) -> nn.Module:
    """The body for images of so many channels."""
    from ldm.classifiers.residual_model import body

    return body(channels, options.width, options.blocks)
