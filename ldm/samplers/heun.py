"""Heun's method with churn (Karras et al. 2022, arXiv:2206.00364, Alg. 2): two evaluations a step, second order."""

from __future__ import annotations

import math
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
    """Noise that is added before each step, in the paper's notation; S_churn 0 adds none (Alg. 1)."""

    S_churn: float = Field(ge=0, description="how much noise is renewed over the whole run; needs a schedule of continuous time")
    S_min: float = Field(ge=0, description="smallest σ̄ at which noise is added")
    S_max: float = Field(ge=0, description="largest σ̄ at which noise is added")
    S_noise: float = Field(gt=0, description="deviation of the added noise (1, or slightly more)")


def build(options: Options) -> Sampler:
    return partial(sample, options=options)


def sample(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, options: Options) -> Iterator[Tensor]:
    """The last step, to σ̄ = 0, is Euler's."""
    gamma = min(options.S_churn / max(len(sigmas) - 1, 1), math.sqrt(2) - 1)
    for sigma, sigma_next in pairwise(sigmas):
        hat = sigma
        if gamma > 0 and options.S_min <= sigma <= options.S_max:
            hat = (1 + gamma) * sigma
            x = x + (hat**2 - sigma**2).sqrt() * options.S_noise * noise()
        slope = (x - denoise(x, hat)) / hat
        ahead = x + (sigma_next - hat) * slope
        if sigma_next > 0:
            slope = (slope + (ahead - denoise(ahead, sigma_next)) / sigma_next) / 2
        x = x + (sigma_next - hat) * slope
        yield x
