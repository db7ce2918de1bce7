"""The layers of the convolutional autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldm.autoencoder import Autoencoder

if TYPE_CHECKING:
    from ldm.autoencoders.conv import Options

GROUPS = 8


class ConvAutoencoder(Autoencoder):
    """encode: (B, C, H, W) in [0, 1] → mean, log-variance (B, c, H/4, W/4); decode: back to logits."""

    def __init__(self, options: Options, in_channels: int) -> None:
        super().__init__()
        half, quarter = options.width, 2 * options.width
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * in_channels, half, 3, padding=1),
            *norm_act(half),
            nn.Conv2d(half, quarter, 3, stride=2, padding=1),
            Residual(quarter),
            *norm_act(quarter),
            nn.Conv2d(quarter, 2 * options.latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(options.latent_channels, quarter, 3, padding=1),
            Residual(quarter),
            *norm_act(quarter),
            nn.Conv2d(quarter, 4 * half, 3, padding=1),
            nn.PixelShuffle(2),
            Residual(half),
            *norm_act(half),
            nn.Conv2d(half, 4 * in_channels, 3, padding=1),
            nn.PixelShuffle(2),
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
