"""A multilayer perceptron for points, (d, 1, 1): one for all noise levels, or one for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """Its size."""

    width: int = Field(ge=1, description="hidden units of a layer")
    layers: int = Field(ge=1, description="hidden layers")
    embedding: int = Field(ge=2, multiple_of=2, description="width of the time embedding")
    experts: int = Field(ge=1, description="networks, each for its own part of (0, 1]: 1, or the length of a chain for one network a level")


def build(options: Options, shape: tuple[int, ...]) -> nn.Module:
    """The network for x_t of shape (C, h, w)."""
    from ldm.networks.mlp_model import MLP

    return MLP(options, shape)
