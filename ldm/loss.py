"""The diffusion loss: its randomness comes in as arguments, one value per sample goes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Generator, Tensor

from ldm.denoiser import Denoiser
from ldm.schedule import Schedule, broadcast
from ldm.target import prediction, x0_error_scale

# (SNR, c²) → the weight on ‖Δx0‖², where ‖ΔF‖² = c² ‖Δx0‖²
Weighting: TypeAlias = Callable[[Tensor, Tensor], Tensor]
# an error → its penalty, elementwise
Penalty: TypeAlias = Callable[[Tensor], Tensor]
# (schedule, n, generator) → n training times in (0, 1], on the generator's device
Times: TypeAlias = Callable[[Schedule, int, Generator], Tensor]


def diffusion_loss(denoiser: Denoiser, penalty: Penalty, weighting: Weighting, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Weighted penalty of the prediction's error at time t.

    x0, eps: (B, C, h, w); t: (B,) in (0, 1]. Returns (B,), the mean over a sample's elements.
    Weights are stated on the squared error of x0 and converted once to that of F.
    """
    t = denoiser.schedule.snap(t)
    alpha, sigma = denoiser.schedule.alpha(t), denoiser.schedule.sigma(t)  # (B,)
    error_scale = x0_error_scale(denoiser.target, alpha, sigma)
    weight = weighting((alpha / sigma) ** 2, error_scale) / error_scale
    a, s = broadcast(alpha, x0), broadcast(sigma, x0)
    wanted = prediction(denoiser.target, x0, eps, a, s)
    error = denoiser.predict(a * x0 + s * eps, t) - wanted
    return weight.float() * penalty(error).flatten(1).mean(1)
