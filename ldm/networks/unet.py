"""A time-conditioned U-Net: residual blocks, scale-shift time embedding, self-attention at the lowest resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from ldm.config import Section
from ldm.errors import InputError

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """Its size."""

    channels: tuple[int, ...] = Field(strict=False, min_length=1, description="channels of each resolution, from the highest; each level halves the grid")
    blocks: int = Field(ge=1, description="residual blocks of a level on the way down; one more on the way up")
    embedding: int = Field(ge=8, multiple_of=2, description="width of the time embedding")
    groups: int = Field(ge=1, description="groups of the group norm; must divide every entry of channels")
    heads: int = Field(ge=1, description="attention heads; must divide the last entry of channels")
    dropout: float = Field(ge=0, lt=1, description="dropout rate inside the residual blocks")

    @model_validator(mode="after")
    def _sizes_divide(self) -> Options:
        for channels in self.channels:
            if channels < 1 or channels % self.groups:
                raise InputError(f"channels {channels} do not divide into {self.groups} groups; choose a multiple")
        if self.channels[-1] % self.heads:
            raise InputError(f"heads {self.heads} do not divide the {self.channels[-1]} channels of the last level")
        return self


def build(options: Options, shape: tuple[int, ...]) -> nn.Module:
    """The network for x_t of shape (C, h, w)."""
    from ldm.networks.unet_model import UNet

    return UNet(options, shape[0])
