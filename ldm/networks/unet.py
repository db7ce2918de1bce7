"""A U-Net conditioned on time, and on classes: residual blocks, scale-shift embedding, self-attention at the lowest resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from ldm.config import Section
from ldm.errors import InputError

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """Its size."""

    patch: int = Field(ge=1, description="side of the squares of the input that become channels at once; must divide height and width")
    width: int = Field(ge=1, description="channels that the multipliers multiply")
    multipliers: tuple[int, ...] = Field(strict=False, min_length=1, description="each level's channels over width, from the finest; levels halve the grid")
    block: Literal["resnet", "convnext"] = Field(description="the residual block")
    blocks: int = Field(ge=1, description="residual blocks of a level on the way down; one more on the way up")
    attention: Literal["none", "linear"] = Field(description="attention after each block of the levels; the middle always has full self-attention")
    resampling: Literal["learned", "fixed"] = Field(description="between levels: convolutions, or averages and repetition alone")
    embedding: int = Field(ge=8, multiple_of=2, description="width of the time embedding")
    groups: int = Field(ge=1, description="groups of the group norm; must divide the channels of every level")
    heads: int = Field(ge=1, description="attention heads; must divide the channels of every level that has attention")
    dropout: float = Field(ge=0, lt=1, description="dropout rate inside the residual blocks")

    @property
    def channels(self) -> list[int]:
        """Of each level, from the finest."""
        return [self.width * m for m in self.multipliers]

    @model_validator(mode="after")
    def _sizes_divide(self) -> Options:
        for multiplier, channels in zip(self.multipliers, self.channels, strict=True):
            if channels < 1 or channels % self.groups:
                raise InputError(f"width {self.width} times the multiplier {multiplier} gives {channels} channels, not a multiple of {self.groups} groups")
        for channels in self.channels if self.attention == "linear" else self.channels[-1:]:
            if channels % self.heads:
                raise InputError(f"heads {self.heads} do not divide the {channels} channels of a level with attention")
        return self


def build(options: Options, shape: tuple[int, ...], classes: int = 0) -> nn.Module:
    """The network for x_t of shape (C, h, w), of so many classes (0: without labels). Raises: InputError unless the patch divides h and w."""
    if any(side % options.patch for side in shape[1:]):
        raise InputError(f"networks.unet.patch: {options.patch} does not divide the grid of {shape[1]} × {shape[2]}")

    from ldm.networks.unet_model import UNet

    return UNet(options, shape[0], classes)
