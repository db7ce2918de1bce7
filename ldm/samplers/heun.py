"""Heun's method in σ-space (Karras et al. 2022, arXiv:2206.00364, Alg. 1): two evaluations a step, second order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from ldm.config import Section

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.sampling import Denoise, Noise, Sampler


class Options(Section):
    """None."""


def build(options: Options) -> Sampler:
    return sample


def sample(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Tensor]:
    """The last step, to σ̄ = 0, is Euler's."""
    for sigma, sigma_next in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope = (slope + (ahead - denoise(ahead, sigma_next)) / sigma_next) / 2
        x = x + (sigma_next - sigma) * slope
        yield x
