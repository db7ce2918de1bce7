"""DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, Alg. 2): one evaluation a step, second order."""

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
    """The first step and the last one, to σ̄ = 0, are of first order."""
    before = h_before = x.new_zeros(())
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        h = sigma.log() - sigma_next.log()  # the step in half-log-SNR; inf in the last one
        slope = denoised
        if h_before > 0 and sigma_next > 0:
            slope = denoised + (h / (2 * h_before)) * (denoised - before)
        x = (sigma_next / sigma) * x - (-h).expm1() * slope
        before, h_before = denoised, h
        yield x
