"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps, with t in (0, 1] and t = 1 the noisiest.

Everything is float64 and elementwise. The samplers work in σ-space, x̄ = x / alpha and
σ̄ = sigma / alpha = exp(−half-log-SNR), which serves every schedule alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ldm.errors import InputError

SNR_OF_NOISE = 1e-3  # a terminal SNR up to which N(0, alpha² + sigma²) passes for the marginal at t = 1


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

    def terminal_snr(self) -> float:
        """(alpha / sigma)² at t = 1."""
        return (2 * self.half_log_snr(torch.ones(1))).exp().item()

    def wrong_start(self) -> str | None:
        """Why sampling must not start from noise alone, in one line; None where it may.

        Of unit Gaussian data, noise of SNR s still tells log(1 + s) / 2 nats an element.
        Lin et al. 2024, arXiv:2305.08891, section 3.1.
        """
        snr = self.terminal_snr()
        if snr <= SNR_OF_NOISE:
            return None
        return f"the schedule's terminal SNR is {snr:.3g}, above {SNR_OF_NOISE:g}: noise alone is a wrong start; use more noise, or zero_terminal_snr"


class Flow(Schedule):
    """The straight path alpha = 1 − t, sigma = t (Liu et al. 2022, arXiv:2209.03003)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        return t.double()

    def t(self, half_log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-half_log_snr.double())


class Karras(Schedule):
    """Variance exploding with σ^(1/ρ) linear in t (Karras et al. 2022, arXiv:2206.00364, Eq. 5)."""

    def __init__(self, sigma_min: float, sigma_max: float, rho: float) -> None:
        self.low, self.high, self.rho = sigma_min ** (1 / rho), sigma_max ** (1 / rho), rho

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return (self.low + t.double() * (self.high - self.low)) ** self.rho

    def t(self, half_log_snr: Tensor) -> Tensor:
        return ((-half_log_snr.double() / self.rho).exp() - self.low) / (self.high - self.low)


class Chain(Schedule):
    """A discrete chain: T levels, the i-th of them, i = 1 … T, at t = i / T.

    Times between the points stand for the next one above.
    """

    def __init__(self, alphas: Tensor, sigmas: Tensor) -> None:
        """alphas, sigmas: (T,), from the least noise to the most. Raises: InputError unless the noise grows."""
        if not ((sigmas[1:] / alphas[1:]) > (sigmas[:-1] / alphas[:-1])).all():
            raise InputError("the noise must grow from step to step of a chain, but it does not")
        self.steps: int = len(alphas)
        self.alphas, self.sigmas = alphas.double(), sigmas.double()
        self._tables = {self.alphas.device: (self.alphas, self.sigmas)}

    def alpha(self, t: Tensor) -> Tensor:
        return self._on(t.device)[0][self._index(t)]

    def sigma(self, t: Tensor) -> Tensor:
        return self._on(t.device)[1][self._index(t)]

    def t(self, half_log_snr: Tensor) -> Tensor:
        """The time of the chain whose level is nearest."""
        alphas, sigmas = self._on(half_log_snr.device)
        levels = (alphas.log() - sigmas.log()).flip(0)  # increasing
        bounds = (levels[1:] + levels[:-1]) / 2
        return (self.steps - torch.bucketize(half_log_snr.double(), bounds)).double() / self.steps

    def snap(self, t: Tensor) -> Tensor:
        return (self._index(t) + 1).double() / self.steps

    def _index(self, t: Tensor) -> Tensor:
        rounded = (t.double() * self.steps - 0.01).ceil().long() - 1  # i / T is its own point, also in float32
        return rounded.clamp(0, self.steps - 1)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """alphas and sigmas on a device, copied there once: a step that copies waits for it."""
        if device not in self._tables:
            self._tables[device] = self.alphas.to(device), self.sigmas.to(device)
        return self._tables[device]


def variance_preserving(betas: Tensor, *, zero_terminal_snr: bool) -> Chain:
    """The chain of q(x_i | x_{i−1}) = N(√(1 − β_i) x_{i−1}, β_i): alpha² = ᾱ_i = ∏ (1 − β_s), sigma² = 1 − ᾱ_i.

    betas: (T,) in (0, 1). Ho et al. 2020, arXiv:2006.11239, Eq. 4. With zero_terminal_snr, √ᾱ is
    shifted to end at 0 and scaled to keep its first value: Lin et al. 2024, arXiv:2305.08891, Alg. 1.
    Raises: InputError for a β outside (0, 1), which only the last of a chain without terminal signal may reach.
    """
    inner = betas[:-1] if zero_terminal_snr and betas[-1] == 1 else betas
    worst = inner[(inner - 0.5).abs().argmax()].item()
    if not 0 < worst < 1:
        raise InputError(f"a chain of {len(betas)} steps would have the beta {worst:.3g}, but it must lie in (0, 1); use more steps, or smaller betas")
    alphas = (1 - betas.double()).cumprod(0).sqrt()  # (T,)
    if zero_terminal_snr:
        if len(betas) < 2:
            raise InputError("zero_terminal_snr needs a chain of at least 2 steps, and this one has 1; use more steps, or set it to false")
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    return Chain(alphas, (1 - alphas**2).sqrt())


def broadcast(level: Tensor, x: Tensor) -> Tensor:
    """(B,) → (B, 1, …, 1) in the type of x, to multiply with it."""
    return level.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
