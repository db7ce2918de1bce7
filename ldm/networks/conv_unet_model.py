"""The layers of the tutorial's U-Net."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from ldm.networks.conv_unet import Options


class ConvUNet(nn.Module):
    """F = network(x_t, t): x_t (B, C, h, w) of unit variance, t (B,) in (0, 1]; returns (B, C, h, w)."""

    frequencies: Tensor

    def __init__(self, options: Options, in_channels: int) -> None:
        super().__init__()
        half = options.embedding // 2
        self.register_buffer("frequencies", torch.exp(-math.log(1000) * torch.arange(half) / (half - 1)), persistent=False)

        def level(c_in: int, c_out: int) -> Level:
            return Level([Block(a, c_out, options.embedding) for a in [c_in] + [c_out] * (options.blocks - 1)])

        sizes = options.channels
        self.down = nn.ModuleList([level(a, b) for a, b in pairwise([in_channels, *sizes])])
        self.up = nn.ModuleList([level(deep + shallow, shallow) for shallow, deep in reversed(list(pairwise(sizes)))])
        self.head = nn.Conv2d(sizes[0], in_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = 1000 * t[:, None] * self.frequencies
        emb = torch.cat([angles.sin(), angles.cos()], 1)  # (B, embedding)
        skips: list[Tensor] = []
        for level in self.down:
            x = level(F.avg_pool2d(x, 2, ceil_mode=True) if skips else x, emb)
            skips.append(x)
        skips.pop()
        for level in self.up:
            skip = skips.pop()
            x = level(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1), emb)
        return self.head(x)


class Level(nn.ModuleList):
    """Blocks on one grid."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for block in self:
            x = block(x, emb)
        return x


class Block(nn.Module):
    """Convolution, instance norm, a linear map of the rectified time embedding added, leaky ReLU: (B, c_in, h, w) → (B, c_out, h, w)."""

    def __init__(self, c_in: int, c_out: int, embedding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm = nn.InstanceNorm2d(c_out)
        self.time = nn.Linear(embedding, c_out)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)) + self.time(F.leaky_relu(emb))[:, :, None, None])
