"""A convolutional autoencoder that shrinks each side by four: 28 × 28 pixels become a 7 × 7 grid.

Patches of 4 × 4 pixels become channels at once, so that all the work is done on the small grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section
from ldm.errors import InputError

if TYPE_CHECKING:
    from ldm.autoencoder import Autoencoder


class Options(Section):
    """Its size."""

    latent_channels: int = Field(ge=1, description="channels of the latent grid")
    width: int = Field(ge=8, multiple_of=8, description="channels of the convolutions on the latent grid")
    blocks: int = Field(ge=1, description="residual blocks of the encoder, and of the decoder")
    smoothing: int = Field(ge=1, description="channels at full resolution, of which the last convolution makes the image")


def build(options: Options, shape: tuple[int, ...]) -> Autoencoder:
    """The autoencoder of images (C, H, W). Raises: InputError unless H and W are multiples of 4."""
    if shape[1] % 4 or shape[2] % 4:
        raise InputError(f"autoencoders.conv: images of {shape[1]} × {shape[2]} pixels cannot be encoded; both sides must be multiples of 4")

    from ldm.autoencoders.conv_model import ConvAutoencoder

    return ConvAutoencoder(options, shape[0])
