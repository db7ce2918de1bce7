"""DPM-Solver++(2M) and its SDE form (Lu et al. 2022, arXiv:2211.01095, Alg. 2 and Eq. 19): one evaluation a step, second order."""

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
    """From the probability-flow ODE to the reverse SDE."""

    eta: float = Field(ge=0, le=1, description="0: the ODE, deterministic; 1: the SDE")


def build(options: Options) -> Sampler:
    return partial(sample, eta=options.eta)


def sample(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float) -> Iterator[Tensor]:
    """The first step and the last one, to σ̄ = 0, are of first order."""
    before, h_before = x, sigmas.new_zeros(())
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        h = sigma.log() - sigma_next.log()  # the step in half-log-SNR; inf in the last one
        slope = denoised
        if h_before > 0 and sigma_next > 0:
            slope = denoised + (h / (2 * h_before)) * (denoised - before)
        decay = (sigma_next / sigma) ** eta
        kept = decay * sigma_next / sigma
        x = kept * x + (1 - kept) * slope
        if eta > 0 and sigma_next > 0:
            x = x + sigma_next * (1 - decay**2).sqrt() * noise()
        before, h_before = denoised, h
        yield x
