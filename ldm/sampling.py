"""Sampling: every sampler is a generator over decreasing σ̄ levels that yields each state x̄.

`denoise(x, sigma) -> denoised` works in σ-space (x̄ = x_t / alpha, σ̄ = sigma / alpha), where the
probability-flow ODE is dx̄/dσ̄ = (x̄ − D) / σ̄ for every schedule (Karras et al. 2022,
arXiv:2206.00364, Eq. 1 and section 2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ldm.errors import InputError
from ldm.schedule import SNR_OF_NOISE

if TYPE_CHECKING:
    from ldm.denoiser import Denoiser, Guided

Denoise: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Noise: TypeAlias = Callable[[], Tensor]
Sampler: TypeAlias = Callable[[Denoise, Tensor, Tensor, Noise], Iterator[Tensor]]


class Streams:
    """One random stream per sample, from (seed, index): the batch never changes a sample.

    Each call returns the next standard normal draw of every stream, (B, *shape) in float64,
    drawn on the CPU so that all devices see the same noise.
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._streams = [np.random.Generator(np.random.Philox(key=[seed, index])) for index in indices]
        self._shape, self._device = tuple(shape), device

    def __call__(self) -> Tensor:
        draws = np.stack([stream.standard_normal(self._shape) for stream in self._streams])
        return torch.from_numpy(draws).to(self._device)

    def classes(self, sizes: Sequence[int]) -> Tensor:
        """One draw of every stream in proportion to the sizes of the classes: (B,) indices."""
        cumulated = np.cumsum(sizes) / np.sum(sizes)
        draws = np.array([stream.random() for stream in self._streams])
        return torch.from_numpy(np.searchsorted(cumulated, draws, side="right")).to(self._device)


def check_levels(sigmas: Tensor) -> Tensor:
    """The levels, unchanged. Raises: InputError unless they decrease strictly to 0."""
    if len(sigmas) < 2 or sigmas[-1] != 0 or not (sigmas[:-1] > sigmas[1:]).all():
        listed = ", ".join(f"{s:.4g}" for s in sigmas.tolist()[:6])
        raise InputError(f"noise levels must decrease strictly and end in 0, but these do not: {listed}, …; a discrete chain may lack so many: use fewer steps")
    return sigmas


def wrong_start(sigmas: Tensor) -> str | None:
    """Why noise alone is no start at the first of these levels, in one line; None where it is one (see `Schedule.wrong_start`)."""
    snr = 1 / sigmas[0].item() ** 2
    if snr <= SNR_OF_NOISE:
        return None
    return f"sampling starts at σ̄ = {sigmas[0]:.3g}, where the SNR is {snr:.3g}, above {SNR_OF_NOISE:g}: noise alone is a wrong start; start from more noise"


def step_to(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One step along the ODE's tangent: Euler in σ-space, which is DDIM with η = 0."""
    return denoised + (sigma_next / sigma) * (x - denoised)


def reverse_step(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise) -> Tensor:
    """One Euler–Maruyama step of the reverse-time SDE, without noise where it ends at σ̄ = 0.

    In σ-space that SDE is dx̄ = (D − x̄) / σ̄² du + dW for every schedule, with u the variance removed so far.
    """
    removed = sigma**2 - sigma_next**2
    mean = x + removed / sigma**2 * (denoised - x)
    return mean + removed.sqrt() * noise() if sigma_next > 0 else mean


def last_state(states: Iterator[Tensor]) -> Tensor:
    """The sample alone."""
    return deque(states, maxlen=1).pop()


def states(denoiser: Denoiser | Guided, sampler: Sampler, sigmas: Tensor, noise: Noise) -> Iterator[Tensor]:
    """The states x_t = alpha x̄ of a reverse process at the levels, (B, C, h, w): noise first, the sample last.

    sigmas: (N + 1,), decreasing, ends in 0. Data of unit variance are assumed, so a finite first
    level starts from x̄ ~ N(0, 1 + σ̄²). An infinite one (alpha = 0) starts from noise alone, with
    one step in x, x_s = alpha_s D + sigma_s eps, to the first finite level.
    """
    check_levels(sigmas)
    eps = noise()
    if sigmas[0].isfinite():
        x = (1 + sigmas[0] ** 2).sqrt() * eps
        yield denoiser.alpha(sigmas[0]) * x
    else:
        yield eps
        x = denoiser(eps, sigmas[0]) + sigmas[1] * eps
        sigmas = sigmas[1:]
        yield denoiser.alpha(sigmas[0]) * x
    for i, state in enumerate(sampler(denoiser, x, sigmas, noise), 1):
        yield denoiser.alpha(sigmas[i]) * state
