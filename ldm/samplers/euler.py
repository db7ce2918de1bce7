"""Euler's method in σ-space on the probability-flow ODE: one evaluation a step, first order."""

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
    from ldm.sampling import step_to

    for sigma, sigma_next in pairwise(sigmas):
        x = step_to(x, denoise(x, sigma), sigma, sigma_next)
        yield x
