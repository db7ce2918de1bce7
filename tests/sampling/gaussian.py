"""Gaussian data, whose best denoiser is known in closed form."""

import torch

from ldm.diffusion import Denoiser, Schedule, predictions

MEAN, STD = 0.4, 0.7  # of the data


def exact(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x0 | x̄] for data N(MEAN, STD²), where x̄ = x0 + σ̄ eps."""
    if sigma.isinf():
        return torch.full_like(x, MEAN)
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def exact_flow(x: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
    """The probability-flow ODE keeps (x̄ − mean) / √(STD² + σ̄²)."""
    return MEAN + (x - MEAN) * ((STD**2 + sigma_next**2) / (STD**2 + sigma**2)).sqrt()


def exact_denoiser(schedule: Schedule) -> Denoiser:
    """A denoiser whose network predicts x0 exactly, for samples (B, d)."""

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha_t, sigma_t = schedule.alpha_t(t)[:, None], schedule.sigma_t(t)[:, None]
        x_t = x * (alpha_t**2 + sigma_t**2).sqrt()
        shrink = STD**2 * alpha_t / (alpha_t**2 * STD**2 + sigma_t**2)
        return (MEAN + shrink * (x_t - alpha_t * MEAN)).float()

    return Denoiser(network, schedule, predictions.build("x0"))
