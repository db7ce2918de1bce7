"""The layers of the U-Net of the tutorial that `recipes/blog_ldm` follows."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ldm.errors import InputError


class ConvUNet(nn.Module):
    """F = network(x_t, t): x_t (B, C, h, w) of unit variance, t (B,) in (0, 1]; returns (B, C, h, w)."""

    frequencies: Tensor

    def __init__(self, shape: Sequence[int], *, channels: Sequence[int], blocks: int, embedding: int) -> None:
        """shape: (C, h, w). Raises: InputError where the coarsest grid is one place, which has no instance norm."""
        super().__init__()
        if math.ceil(max(shape[1:]) / 2 ** (len(channels) - 1)) < 2:
            size = f"{len(channels)} resolutions are too many for a grid of {shape[1]} × {shape[2]}"
            raise InputError(f"networks.conv_unet.channels: {size}")
        half = embedding // 2
        frequencies = torch.exp(-math.log(1000) * torch.arange(half) / (half - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)

        def stack(c_in: int, c_out: int) -> Blocks:
            return Blocks([Block(a, c_out, embedding) for a in [c_in] + [c_out] * (blocks - 1)])

        self.down = nn.ModuleList([stack(a, b) for a, b in pairwise([shape[0], *channels])])
        self.up = nn.ModuleList([stack(coarse + fine, fine) for fine, coarse in reversed(list(pairwise(channels)))])
        self.head = nn.Conv2d(channels[0], shape[0], 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = 1000 * t[:, None] * self.frequencies
        emb = torch.cat([angles.sin(), angles.cos()], 1)  # (B, embedding)
        skips: list[Tensor] = []
        for blocks in self.down:
            x = blocks(nnf.avg_pool2d(x, 2, ceil_mode=True) if skips else x, emb)
            skips.append(x)
        skips.pop()
        for blocks in self.up:
            skip = skips.pop()
            x = blocks(torch.cat([nnf.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1), emb)
        return self.head(x)


class Blocks(nn.ModuleList):
    """Blocks at one resolution, one after the other."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for block in self:
            x = block(x, emb)
        return x


class Block(nn.Module):
    """Convolution, instance norm, plus a linear map of the rectified time embedding, leaky ReLU.

    (B, c_in, h, w) → (B, c_out, h, w).
    """

    def __init__(self, c_in: int, c_out: int, embedding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm = nn.InstanceNorm2d(c_out)
        self.time = nn.Linear(embedding, c_out)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return nnf.leaky_relu(self.norm(self.conv(x)) + self.time(nnf.leaky_relu(emb))[:, :, None, None])
