"""The layers of the perceptron for points."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


class MLP(nn.Module):
    """F = network(x_t, t): x_t (B, …) of unit variance, t (B,) in (0, 1]; returns the shape of x_t."""

    frequencies: Tensor

    def __init__(self, shape: Sequence[int], *, width: int, depth: int, embedding: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        frequencies = math.pi / 2 * torch.arange(1, embedding // 2 + 1)
        self.register_buffer("frequencies", frequencies, persistent=False)
        size = math.prod(shape)
        sizes = [size + embedding, *[width] * depth, size]
        self.layers = nn.ModuleList([Experts(experts, a, b) for a, b in pairwise(sizes)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        h = torch.cat([x.flatten(1), angles.cos(), angles.sin()], 1)
        if self.experts == 1:
            return self._through(h[None])[0].view_as(x)
        expert = ((t * self.experts - 0.01).ceil().long() - 1).clamp(0, self.experts - 1)  # i / T belongs to expert i
        slot = position_in_group(expert, self.experts)
        rows = h.new_zeros(self.experts, int(slot.max()) + 1, h.shape[1])
        rows = rows.index_put((expert, slot), h)  # (experts, rows, in)
        return self._through(rows)[expert, slot].view_as(x)

    def _through(self, rows: Tensor) -> Tensor:
        """(experts, rows, in) → (experts, rows, out)."""
        for layer in self.layers[:-1]:
            rows = nnf.silu(layer(rows))
        return self.layers[-1](rows)


def position_in_group(group: Tensor, count: int) -> Tensor:
    """How many of the same group come before each element: (B,) in [0, count) → (B,)."""
    order = group.argsort(stable=True)
    sizes = torch.bincount(group, minlength=count)
    position = torch.empty_like(group)
    position[order] = torch.arange(len(group), device=group.device) - (sizes.cumsum(0) - sizes)[group[order]]
    return position


class Experts(nn.Module):
    """Linear layers side by side, each for its own rows: (count, rows, in) → (count, rows, out)."""

    def __init__(self, count: int, size_in: int, size_out: int) -> None:
        super().__init__()
        # He et al. 2015, arXiv:1502.01852, Eq. 10: the bound of nn.Linear keeps a small network linear
        bound = math.sqrt(6 / size_in)
        self.weight = nn.Parameter(torch.empty(count, size_in, size_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, size_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)
