"""Predictor–corrector sampling with Langevin steps (Song et al. 2021, arXiv:2011.13456, Algs. 2 and 4)."""

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
    """The corrector."""

    corrections: int = Field(ge=0, description="Langevin steps at each level (1 in the paper)")
    snr: float = Field(gt=0, lt=1, description="size of a Langevin step, the paper's signal-to-noise ratio r (0.16)")


def build(options: Options) -> Sampler:
    return partial(sample, options=options)


def sample(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, options: Options) -> Iterator[Tensor]:
    """Each step is one of Euler–Maruyama, corrected at the new level; the last one, to σ̄ = 0, returns the mean.

    The step size 2 (r ‖z‖ / ‖score‖)² takes the norms of one sample, not of the batch's mean, so
    that no sample depends on others.
    """
    from ldm.sampling import reverse_step

    for sigma, sigma_next in pairwise(sigmas):
        x = reverse_step(x, denoise(x, sigma), sigma, sigma_next, noise)
        for _ in range(options.corrections if sigma_next > 0 else 0):
            score, z = (denoise(x, sigma_next) - x) / sigma_next**2, noise()
            ratio = z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)  # (B,)
            step = 2 * (options.snr * ratio.view(-1, *[1] * (x.dim() - 1))) ** 2
            x = x + step * score + (2 * step).sqrt() * z
        yield x
