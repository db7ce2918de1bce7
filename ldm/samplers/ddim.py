"""DDIM (Song et al. 2021, arXiv:2010.02502, Eq. 12): η = 0 is Euler in σ-space, η = 1 ancestral sampling."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.sampling import Denoise, Noise, Sampler


class Options(Section):
    """How much of the step's noise is drawn afresh."""

    eta: float = Field(ge=0, le=1, description="0: deterministic; 1: the variance of the DDPM posterior")


def build(options: Options) -> Sampler:
    return partial(sample, eta=options.eta)


def sample(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float) -> Iterator[Tensor]:
    from ldm.sampling import step_to

    for sigma, sigma_next in pairwise(sigmas):
        fresh = eta**2 * sigma_next**2 * (1 - (sigma_next / sigma) ** 2)  # variance drawn afresh
        x = step_to(x, denoise(x, sigma), sigma, (sigma_next**2 - fresh).sqrt())
        if fresh > 0:
            x = x + fresh.sqrt() * noise()
        yield x
