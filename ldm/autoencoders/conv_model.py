"""The layers of the convolutional autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldm.autoencoder import Autoencoder

if TYPE_CHECKING:
    from ldm.autoencoders.conv import Options

PATCH = 4  # pixels a side that one place of the latent grid stands for
GROUPS = 8


class ConvAutoencoder(Autoencoder):
    """encode: (B, C, H, W) in [0, 1] → mean, log-variance (B, c, H/4, W/4); decode: back to logits."""

    def __init__(self, options: Options, in_channels: int) -> None:
        super().__init__()
        width, pixels = options.width, PATCH**2 * in_channels

        def blocks() -> list[nn.Module]:
            return [Residual(width) for _ in range(options.blocks)]

        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(PATCH),
            nn.Conv2d(pixels, width, 3, padding=1),
            *blocks(),
            *norm_act(width),
            nn.Conv2d(width, 2 * options.latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(options.latent_channels, width, 3, padding=1),
            *blocks(),
            *norm_act(width),
            nn.Conv2d(width, options.smoothing * PATCH**2, 3, padding=1),
            nn.PixelShuffle(PATCH),
            nn.SiLU(),
            nn.Conv2d(options.smoothing, in_channels, 3, padding=1),
        )
        self.to(memory_format=torch.channels_last)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean.contiguous(), log_variance.clamp(-20, 10).contiguous()

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z.contiguous(memory_format=torch.channels_last))


class Residual(nn.Module):
    """x plus two convolutions of it, (B, C, h, w) → (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def conv() -> nn.Conv2d:
            return nn.Conv2d(channels, channels, 3, padding=1)

        self.layers = nn.Sequential(*norm_act(channels), conv(), *norm_act(channels), conv())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def norm_act(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(GROUPS, channels), nn.SiLU()
