"""Ancestral sampling (Ho et al. 2020, arXiv:2006.11239, Alg. 2), exact in σ-space for any levels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.sampling import Denoise, Noise, Sampler


class Options(Section):
    """The variance of the reverse step, σ_t² in the paper's section 3.2."""

    variance: Literal["beta_tilde", "beta"] = Field(description="beta_tilde: that of the posterior q(x_s | x_t, x0); beta: the upper bound, for VP schedules")


def build(options: Options) -> Sampler:
    return partial(sample, variance=options.variance)


def sample(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, variance: str) -> Iterator[Tensor]:
    """The last step, to σ̄ = 0, returns the posterior's mean without noise."""
    for sigma, sigma_next in pairwise(sigmas):
        ratio = (sigma_next / sigma) ** 2
        x = ratio * x + (1 - ratio) * denoise(x, sigma)
        if sigma_next > 0:
            gap = sigma**2 - sigma_next**2
            spread = ratio * gap if variance == "beta_tilde" else (1 + sigma_next**2) * gap / (1 + sigma**2)
            x = x + spread.sqrt() * noise()
        yield x
