"""Ito SDEs dX = f(X, t) dt + g(t) dW with a linear drift, and their reversal in time.

Song et al. 2021, arXiv:2011.13456. Time t runs over [0, 1] and X_0 are the data. Each SDE is
also a noise schedule: X_t given X_0 is N(alpha(t) X_0, sigma(t)² I). Levels are float64; a t of
shape (B,) goes with samples (B, …).
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from ldm.schedule import Schedule, broadcast


class ItoSDE(Schedule):
    """dX = rate(t) X dt + diffusion(t) dW."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """f(X, t) / X, which is d log alpha / dt; same shape as t."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """g(t), with g² = d sigma² / dt − 2 rate sigma²; same shape as t."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(x, t), (B, …)."""
        return broadcast(self.rate(t), x) * x

    def conditional_mean(self, x0: Tensor, t: Tensor) -> Tensor:
        """E[X_t | X_0 = x0], (B, …)."""
        return broadcast(self.alpha(t), x0) * x0

    def conditional_variance(self, t: Tensor) -> Tensor:
        """V[X_t | X_0] of each element, same shape as t."""
        return self.sigma(t) ** 2

    def marginal(self, x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """X_t for standard normal eps, and the score ∇ log p(X_t | x0) = −eps / sigma; both (B, …), t > 0."""
        sigma = broadcast(self.sigma(t), x0)
        return self.conditional_mean(x0, t) + sigma * eps, -eps / sigma

    def reverse_drift(self, x: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """f − g² score: the drift of the SDE that runs back from t = 1, with the same g (Eq. 6)."""
        return self.drift(x, t) - broadcast(self.diffusion(t), x) ** 2 * score

    def flow_drift(self, x: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """f − g² score / 2: the probability-flow ODE, which has the same marginals (Eq. 13)."""
        return self.drift(x, t) - broadcast(self.diffusion(t), x) ** 2 * score / 2


class VP(ItoSDE):
    """Variance preserving: f = −β X / 2, g² = β, with β(t) = β_min + t (β_max − β_min) (Eqs. 11, 32, 33)."""

    def __init__(self, beta_min: float, beta_max: float) -> None:
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t.double() * (self.beta_max - self.beta_min)

    def integral(self, t: Tensor) -> Tensor:
        """∫₀ᵗ β, same shape as t."""
        t = t.double()
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def alpha(self, t: Tensor) -> Tensor:
        return (-self.integral(t) / 2).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-(-self.integral(t)).expm1()).sqrt()

    def t(self, half_log_snr: Tensor) -> Tensor:
        return self._time_of(torch.nn.functional.softplus(-2 * half_log_snr.double(), threshold=math.inf))

    def rate(self, t: Tensor) -> Tensor:
        return -self.beta(t) / 2

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()

    def _time_of(self, integral: Tensor) -> Tensor:
        """The t at which ∫₀ᵗ β has this value, in the form that does not cancel for small ones."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())


class SubVP(VP):
    """f = −β X / 2, g² = β (1 − exp(−2∫β)): the mean of VP, the square of its variance (Eqs. 12, 29)."""

    def sigma(self, t: Tensor) -> Tensor:
        return -(-self.integral(t)).expm1()

    def t(self, half_log_snr: Tensor) -> Tensor:
        # σ̄ = (1 − a²) / a at a = alpha, so a = √(1 + σ̄²/4) − σ̄/2 and log a = −asinh(σ̄/2)
        return self._time_of(2 * ((-half_log_snr.double()).exp() / 2).asinh())

    def diffusion(self, t: Tensor) -> Tensor:
        return (-self.beta(t) * (-2 * self.integral(t)).expm1()).sqrt()


class VE(ItoSDE):
    """Variance exploding: f = 0, g² = d sigma²/dt, with sigma² = σ_min² (r^{2t} − 1) and r = σ_max / σ_min.

    Eqs. 9 and 30, less the variance σ_min² that the paper adds to the data at t = 0.
    """

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        self.sigma_min, self.log_ratio = sigma_min, math.log(sigma_max / sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (2 * self.log_ratio * t.double()).expm1().sqrt()

    def t(self, half_log_snr: Tensor) -> Tensor:
        return ((-half_log_snr.double()).exp() / self.sigma_min).square().log1p() / (2 * self.log_ratio)

    def rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t, dtype=torch.float64)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.log_ratio * t.double()).exp() * math.sqrt(2 * self.log_ratio)
