"""Schedules of continuous time: Ito SDEs dX = f(X, t) dt + g(t) dW with a linear drift, and the levels of EDM.

Song et al. 2021, arXiv:2011.13456. Time t runs over [0, 1] and X_0 are the data. Each SDE is also a noise schedule:
X_t given X_0 has the mean alpha_t X_0 and the variance sigma_t².
"""

import math
from abc import abstractmethod
from typing import Annotated

from pydantic import Field

from ldm.config import Rho, Sigma
from ldm.diffusion.chains import Chain
from ldm.diffusion.schedule import Schedule, broadcast, schedules
from ldm.errors import InputError
from ldm.lazy import Tensor, torch

Beta = Annotated[float, Field(gt=0, le=10_000)]  # of which squares are finite
LevelCount = Annotated[int | None, Field(ge=2, le=100_000)]


def check_range(sigma_min: float, sigma_max: float) -> None:
    """Check a range of noise levels. Raises: InputError unless its ends are in order."""
    if sigma_min >= sigma_max:
        raise InputError(f"sigma_min {sigma_min:g} must be below sigma_max {sigma_max:g}")


class ItoSDE(Schedule):
    """dX = drift_rate(t) X dt + diffusion(t) dW."""

    @abstractmethod
    def drift_rate(self, t: Tensor) -> Tensor:
        """f(X, t) / X, which is d log alpha_t / dt; same shape as t."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """g(t), with g² = d sigma_t² / dt − 2 drift_rate sigma_t²; same shape as t."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(x, t), for x (B, …) and t (B,)."""
        return broadcast(self.drift_rate(t), x) * x

    def reverse_drift(self, x: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """f − g² score: the drift of the SDE that runs back from t = 1, with the same g (Eq. 6); (B, …)."""
        return self.drift(x, t) - broadcast(self.diffusion(t), x) ** 2 * score


@schedules.register
class VP(ItoSDE):
    """The variance-preserving SDE: f = −β X / 2, g² = β, with β(t) linear (Song et al. 2021, Eqs. 11, 32, 33).

    beta_min: β(0)
    beta_max: β(1)
    """

    def __init__(self, *, beta_min: Beta = 0.1, beta_max: Beta = 20.0) -> None:
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t.double() * (self.beta_max - self.beta_min)

    def integral(self, t: Tensor) -> Tensor:
        """∫₀ᵗ β, same shape as t."""
        t = t.double()
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def alpha_t(self, t: Tensor) -> Tensor:
        return (-self.integral(t) / 2).exp()

    def sigma_t(self, t: Tensor) -> Tensor:
        return (-(-self.integral(t)).expm1()).sqrt()

    def time_of(self, half_log_snr: Tensor) -> Tensor:
        return self._time_of(torch.nn.functional.softplus(-2 * half_log_snr.double(), threshold=math.inf))

    def drift_rate(self, t: Tensor) -> Tensor:
        return -self.beta(t) / 2

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()

    def _time_of(self, integral: Tensor) -> Tensor:
        """The t at which ∫₀ᵗ β has this value, in the form that does not cancel for small ones."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())


@schedules.register
class SubVP(VP):
    """The sub-VP SDE: f = −β X / 2, g² = β (1 − exp(−2∫β)), with β(t) linear (Song et al. 2021, Eqs. 12, 29).

    X_t given X_0 has the mean of VP, and the square of its variance, which is smaller.

    beta_min: β(0)
    beta_max: β(1)
    """

    def sigma_t(self, t: Tensor) -> Tensor:
        return -(-self.integral(t)).expm1()

    def time_of(self, half_log_snr: Tensor) -> Tensor:
        # σ̄ = (1 − a²) / a at a = alpha_t, so a = √(1 + σ̄²/4) − σ̄/2 and log a = −asinh(σ̄/2)
        return self._time_of(2 * ((-half_log_snr.double()).exp() / 2).asinh())

    def diffusion(self, t: Tensor) -> Tensor:
        return (-self.beta(t) * (-2 * self.integral(t)).expm1()).sqrt()


@schedules.register
class VE(ItoSDE):
    """The variance-exploding SDE: f = 0, g² = d sigma_t²/dt, with sigma_t² = σ_min² (r^{2t} − 1), r = σ_max / σ_min.

    Song et al. 2021, Eqs. 9 and 30, less the variance σ_min² that the paper adds to the data at t = 0.

    sigma_min: scale of the smallest σ̄
    sigma_max: largest σ̄
    """

    def __init__(self, *, sigma_min: Sigma = 0.01, sigma_max: Sigma = 50.0) -> None:
        check_range(sigma_min, sigma_max)
        self.sigma_min, self.log_ratio = sigma_min, math.log(sigma_max / sigma_min)

    def alpha_t(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma_t(self, t: Tensor) -> Tensor:
        return self.sigma_min * (2 * self.log_ratio * t.double()).expm1().sqrt()

    def time_of(self, half_log_snr: Tensor) -> Tensor:
        return ((-half_log_snr.double()).exp() / self.sigma_min).square().log1p() / (2 * self.log_ratio)

    def drift_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t, dtype=torch.float64)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.log_ratio * t.double()).exp() * math.sqrt(2 * self.log_ratio)


class Karras(Schedule):
    """alpha_t = 1 and σ^(1/ρ) linear in t (Karras et al. 2022, arXiv:2206.00364, Eq. 5)."""

    def __init__(self, sigma_min: float, sigma_max: float, rho: float) -> None:
        self.low, self.high, self.rho = sigma_min ** (1 / rho), sigma_max ** (1 / rho), rho

    def alpha_t(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma_t(self, t: Tensor) -> Tensor:
        return (self.low + t.double() * (self.high - self.low)) ** self.rho

    def time_of(self, half_log_snr: Tensor) -> Tensor:
        return ((-half_log_snr.double() / self.rho).exp() - self.low) / (self.high - self.low)


@schedules.register
def karras(*, sigma_min: Sigma = 0.002, sigma_max: Sigma = 80.0, rho: Rho = 7.0, length: LevelCount = None) -> Schedule:
    """EDM's levels, which leave the data unscaled (Karras et al. 2022, arXiv:2206.00364, Eq. 5).

    sigma_min: smallest σ̄
    sigma_max: largest σ̄
    rho: curvature ρ; larger values crowd the small levels
    length: number of levels of a discrete chain; null for continuous time
    """
    check_range(sigma_min, sigma_max)
    continuous = Karras(sigma_min, sigma_max, rho)
    if length is None:
        return continuous
    sigmas = continuous.sigma_t(torch.linspace(0, 1, length, dtype=torch.float64))
    return Chain(torch.ones_like(sigmas), sigmas)
