"""Noise schedules: x_t = alpha_t x0 + sigma_t eps, with t in (0, 1] and t = 1 the noisiest.

Everything is float64 and elementwise. The samplers work in σ-space, x̄ = x_t / alpha_t, where the noise level is
sigma = σ̄ = sigma_t / alpha_t = exp(−half-log-SNR); that serves every schedule alike.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Self

from ldm.config import Registry
from ldm.errors import InputError
from ldm.lazy import Tensor, torch

SNR_OF_NOISE = 1e-3  # up to this SNR at the start, sampling may start from noise alone, N(0, alpha_t² + sigma_t²)


class Level(NamedTuple):
    """The schedule at a time: t, alpha_t and sigma_t, all of shape (B,) or all scalars, in float64."""

    t: Tensor
    alpha_t: Tensor
    sigma_t: Tensor

    def expand(self, x: Tensor) -> Self:
        """Repeat a scalar level on the CPU for samples x (B, …), on their device, which is not waited for: all (B,)."""
        return type(self)(*(x.new_full((len(x),), value.item(), dtype=torch.float64) for value in self))


class Schedule(ABC):
    """Signal and noise over t."""

    length: int | None = None  # of a discrete chain; None for continuous time

    @abstractmethod
    def alpha_t(self, t: Tensor) -> Tensor:
        """The signal's factor at times t; same shape as t."""

    @abstractmethod
    def sigma_t(self, t: Tensor) -> Tensor:
        """The noise's deviation at times t; same shape as t."""

    @abstractmethod
    def time_of(self, half_log_snr: Tensor) -> Tensor:
        """The times t at which `half_log_snr(t)` has these values; same shape."""

    def half_log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t / sigma_t): decreasing in t, −inf where alpha_t is 0."""
        return self.alpha_t(t).log() - self.sigma_t(t).log()

    def snap(self, t: Tensor) -> Tensor:
        """The nearest times not below t at which the schedule is defined."""
        return t

    def at(self, t: Tensor) -> Level:
        """The level at times t, each of which is moved first by `snap`."""
        t = self.snap(t)
        return Level(t, self.alpha_t(t), self.sigma_t(t))

    def at_sigma(self, sigma: Tensor) -> Level:
        """The level whose σ̄ is the positive scalar sigma.

        Raises: InputError for a σ̄ that is not positive, or that a discrete chain does not have.
        """
        if not sigma > 0:
            raise InputError(f"cannot denoise at the noise level {sigma:g}; it must be above 0")
        level = self.at(self.time_of(-sigma.log()))
        half_log_snr = level.alpha_t.log() - level.sigma_t.log()
        if self.length is not None and not torch.isclose(half_log_snr, -sigma.log(), rtol=0, atol=1e-6):
            raise InputError(f"the chain has no noise level {sigma:g}; heun with S_churn needs continuous time")
        return level

    def terminal_snr(self) -> float:
        """(alpha_t / sigma_t)² at t = 1."""
        return (2 * self.half_log_snr(torch.ones(1))).exp().item()

    def wrong_start(self) -> str | None:
        """Why sampling must not start from noise alone, in one line; None where it may.

        At an SNR s, x_t still holds log(1 + s) / 2 nats per element about Gaussian data of unit variance; that the end
        of a schedule must hold none is the point of Lin et al. 2024, arXiv:2305.08891, section 3.1.
        """
        remedy = "use more noise, or zero_terminal_snr"
        return why_noise_is_no_start(self.terminal_snr(), "the schedule's terminal SNR is", remedy)


def why_noise_is_no_start(snr: float, where: str, remedy: str) -> str | None:
    """One line that says why noise alone is a wrong start at this SNR; None where it is a right one."""
    if snr <= SNR_OF_NOISE:
        return None
    return f"{where} {snr:.3g}, above {SNR_OF_NOISE:g}: noise alone is a wrong start; {remedy}"


schedules: Registry[Schedule] = Registry("schedules")  # here, in chains.py and in sde.py


@schedules.register
class RectifiedFlow(Schedule):
    """The straight path from data to noise: alpha_t = 1 − t, sigma_t = t (Liu et al. 2022, arXiv:2209.03003)."""

    def alpha_t(self, t: Tensor) -> Tensor:
        return 1 - t.double()

    def sigma_t(self, t: Tensor) -> Tensor:
        return t.double()

    def time_of(self, half_log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-half_log_snr.double())


def broadcast(level: Tensor, x: Tensor) -> Tensor:
    """(B,) → (B, 1, …, 1) in the type of x, to multiply with it."""
    return level.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
