"""Five convolutions, flattened, and a dense layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """Its size."""

    width: int = Field(ge=1, description="channels of the first convolution")


def build(options: Options, shape: tuple[int, ...]) -> nn.Module:
    """The body for images (C, H, W)."""
    from ldm.classifiers.conv_model import body

    return body(shape[0], options.width)
