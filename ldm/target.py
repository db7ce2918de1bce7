"""Prediction targets as data: a network predicts F = a x0 + b eps, and a target is the pair (a, b).

Each `ldm/targets/<name>.py` builds a function (alpha, sigma) → (a, b); the algebra is here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

Level: TypeAlias = Tensor | float
Target: TypeAlias = Callable[[Level, Level], tuple[Level, Level]]


def prediction(target: Target, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the network should say: F = a x0 + b eps. Levels broadcast against x0."""
    a, b = target(alpha, sigma)
    return a * x0 + b * eps


def x0_from(target: Target, f: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 = (b x_t − sigma F) / (b alpha − a sigma)."""
    a, b = target(alpha, sigma)
    return (b * x_t - sigma * f) / (b * alpha - a * sigma)


def eps_from(target: Target, f: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps = (alpha F − a x_t) / (b alpha − a sigma)."""
    a, b = target(alpha, sigma)
    return (alpha * f - a * x_t) / (b * alpha - a * sigma)


def x0_error_scale(target: Target, alpha: Tensor, sigma: Tensor) -> Tensor:
    """c² in ‖ΔF‖² = c² ‖Δx0‖², with c = (b alpha − a sigma) / sigma."""
    a, b = target(alpha, sigma)
    return ((b * alpha - a * sigma) / sigma) ** 2


def invertible_without_signal(target: Target) -> bool:
    """Whether x0 follows from F at alpha = 0, where x_t = eps says nothing of it."""
    return bool(target(0.0, 1.0)[0] != 0)
