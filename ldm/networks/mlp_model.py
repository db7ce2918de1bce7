"""The layers of the perceptron."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from ldm.networks.mlp import Options


class MLP(nn.Module):
    """F = network(x_t, t): x_t (B, …) of unit variance, t (B,) in (0, 1]; returns the shape of x_t."""

    frequencies: Tensor

    def __init__(self, options: Options, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.experts = options.experts
        half = options.embedding // 2
        self.register_buffer("frequencies", math.pi / 2 * torch.arange(1, half + 1), persistent=False)
        size = math.prod(shape)
        sizes = [size + options.embedding, *[options.width] * options.layers, size]
        self.layers = nn.ModuleList([Experts(options.experts, a, b) for a, b in pairwise(sizes)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        h = torch.cat([x.flatten(1), angles.cos(), angles.sin()], 1)
        expert = ((t * self.experts - 0.01).ceil().long() - 1).clamp(0, self.experts - 1)  # i / T belongs to expert i
        for layer in self.layers[:-1]:
            h = F.silu(layer(h, expert))
        return self.layers[-1](h, expert).view_as(x)


class Experts(nn.Module):
    """Linear layers side by side; each row of the input goes through the one that it names: (B, in), (B,) → (B, out)."""

    def __init__(self, count: int, size_in: int, size_out: int) -> None:
        super().__init__()
        bound = math.sqrt(6 / size_in)  # He et al. 2015, arXiv:1502.01852, Eq. 10: nn.Linear's own keeps a small network linear
        self.weight = nn.Parameter(torch.empty(count, size_out, size_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, size_out).uniform_(-bound, bound))

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        if len(self.weight) == 1:
            return F.linear(x, self.weight[0], self.bias[0])
        return torch.einsum("boi,bi->bo", self.weight[expert], x) + self.bias[expert]
