"""Euler–Maruyama on the reverse-time SDE (Song et al. 2021, arXiv:2011.13456, Eq. 6), first order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from ldm.config import Section as Options

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.sampling import Denoise, Noise, Sampler


def build(options: Options) -> Sampler:
    return sample


def sample(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Tensor]:
    """The last step, from the smallest level t = ε to σ̄ = 0, adds no noise: it returns the mean E[x0 | x̄_ε]."""
    from ldm.sampling import reverse_step

    for sigma, sigma_next in pairwise(sigmas):
        x = reverse_step(x, denoise(x, sigma), sigma, sigma_next, noise)
        yield x
