"""The diffusion loss: its randomness comes in as arguments, one value per sample goes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Generator, Tensor

from ldm.denoiser import Denoiser, broadcast
from ldm.target import prediction, x0_error_scale

# (SNR, c²) → the weight on ‖Δx0‖², where ‖ΔF‖² = c² ‖Δx0‖²
Weighting: TypeAlias = Callable[[Tensor, Tensor], Tensor]
# (n, generator) → n training times in (0, 1], on the generator's device
Times: TypeAlias = Callable[[int, Generator], Tensor]


def diffusion_loss(denoiser: Denoiser, weighting: Weighting, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Weighted mean squared error of the prediction at time t.

    x0, eps: (B, C, h, w); t: (B,) in (0, 1]. Returns (B,), the mean over a sample's elements.
    Weights are stated on the error of x0 and converted once to the error of F.
    """
    t = denoiser.schedule.snap(t)
    alpha, sigma = denoiser.schedule.alpha(t), denoiser.schedule.sigma(t)  # (B,)
    error_scale = x0_error_scale(denoiser.target, alpha, sigma)
    weight = weighting((alpha / sigma) ** 2, error_scale) / error_scale
    a, s = broadcast(alpha, x0), broadcast(sigma, x0)
    wanted = prediction(denoiser.target, x0, eps, a, s)
    error = denoiser.predict(a * x0 + s * eps, t) - wanted
    return weight.float() * error.square().flatten(1).mean(1)
