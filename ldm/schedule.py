"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps, with t in (0, 1] and t = 1 the noisiest.

Everything is float64 and elementwise. The samplers work in σ-space, x̄ = x / alpha and
σ̄ = sigma / alpha = exp(−half-log-SNR), which serves every schedule alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Schedule(ABC):
    """Signal and noise levels over t."""

    steps: int | None = None  # the length of a discrete chain; None for continuous time

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal level, same shape as t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level, same shape as t."""

    @abstractmethod
    def t(self, half_log_snr: Tensor) -> Tensor:
        """Inverse of `half_log_snr`, same shape."""

    def half_log_snr(self, t: Tensor) -> Tensor:
        """log(alpha / sigma): decreasing in t, −inf where alpha is 0."""
        return self.alpha(t).log() - self.sigma(t).log()

    def snap(self, t: Tensor) -> Tensor:
        """The nearest times not below t at which the schedule is defined."""
        return t


class Flow(Schedule):
    """The straight path alpha = 1 − t, sigma = t (Liu et al. 2022, arXiv:2209.03003)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        return t.double()

    def t(self, half_log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-half_log_snr.double())


class Chain(Schedule):
    """A discrete variance-preserving chain: alpha² = ᾱ_i = ∏ (1 − β_s) at t = i / T, i = 1 … T.

    Ho et al. 2020, arXiv:2006.11239, Eq. 4. Times between the points stand for the next one above.
    """

    def __init__(self, betas: Tensor) -> None:
        self.steps: int = len(betas)
        self.betas = betas.double()  # (T,)
        self.alphas_cumprod = (1 - self.betas).cumprod(0)  # (T,)

    def alpha(self, t: Tensor) -> Tensor:
        return self._at(self.alphas_cumprod, t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._at(self.alphas_cumprod, t)).sqrt()

    def t(self, half_log_snr: Tensor) -> Tensor:
        """The time of the chain whose level is nearest."""
        levels = self.half_log_snr(self._times(half_log_snr.device)).flip(0)  # increasing
        bounds = (levels[1:] + levels[:-1]) / 2
        return (self.steps - torch.bucketize(half_log_snr.double(), bounds)).double() / self.steps

    def snap(self, t: Tensor) -> Tensor:
        return (self._index(t) + 1).double() / self.steps

    def _times(self, device: torch.device) -> Tensor:
        return torch.arange(1, self.steps + 1, device=device, dtype=torch.float64) / self.steps

    def _index(self, t: Tensor) -> Tensor:
        rounded = (t.double() * self.steps - 0.01).ceil().long() - 1  # i / T is its own point, also in float32
        return rounded.clamp(0, self.steps - 1)

    def _at(self, table: Tensor, t: Tensor) -> Tensor:
        return table.to(t.device)[self._index(t)]
