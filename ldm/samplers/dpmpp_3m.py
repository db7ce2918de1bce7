"""DPM-Solver++ of third order, multistep (Lu et al. 2022, arXiv:2211.01095, section 4.2): one evaluation a step.

With y = x̄ / σ̄ and λ = −log σ̄ the ODE is dy/dλ = D / σ̄: D is interpolated through the last three
evaluations and integrated exactly. A first-order first step would spoil the order, so that step
looks ahead to its end with an extra evaluation, which makes its local error one of third order.
"""

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
    """The second step is of second order (2M); the last one, to σ̄ = 0, of first."""
    past: list[tuple[Tensor, Tensor]] = []  # (σ̄, D) of the evaluations before, the latest first
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        kept = sigma_next / sigma
        x_next = kept * x + (1 - kept) * denoised
        if sigma_next > 0:
            h = -kept.log()  # the step in λ; below, u runs over it from 0 to h
            first = h - (1 - kept)  # ∫ e^{u−h} u du
            second = h**2 - 2 * first  # ∫ e^{u−h} u² du
            if past:
                h1, slope = _slope(sigma, denoised, *past[0])
            else:
                h1, slope = _slope(sigma_next, denoise(x_next, sigma_next), sigma, denoised)
            x_next = x_next + first * slope
            if len(past) > 1:
                h2, slope_before = _slope(*past[0], *past[1])
                x_next = x_next + (second + h1 * first) * (slope - slope_before) / (h1 + h2)
        past = [(sigma, denoised), *past[:1]]
        x = x_next
        yield x


def _slope(sigma: Tensor, denoised: Tensor, sigma_before: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The distance in λ of two evaluations, and the divided difference of D over it."""
    h = (sigma_before / sigma).log()
    return h, (denoised - before) / h
