"""Log-likelihood by the probability-flow ODE (Song et al. 2021, arXiv:2011.13456, section 4.3 and appendix D.2).

In σ-space and u = log σ̄ the ODE is dx̄/du = x̄ − D, and along it d log p / du = −div(x̄ − D), whatever the schedule.
"""

import math
from collections.abc import Callable
from itertools import pairwise

from ldm.errors import InputError
from ldm.lazy import Tensor, torch
from ldm.sampling.levels import check_sigmas
from ldm.sampling.samplers import Denoise


def exact_divergence(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The value (B, …), and the trace of the Jacobian (B,).

    It takes one backward pass per element of a sample, so it serves low dimensions only.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x)
        trace = x.new_zeros(len(x))
        for i, column in enumerate(value.flatten(1).unbind(1)):
            trace = trace + torch.autograd.grad(column.sum(), x, retain_graph=True)[0].flatten(1)[:, i]
    return value.detach(), trace


def log_likelihood(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """log p(x) in nats, (B,), of data seen through noise of the smallest positive level.

    x: (B, …), data plus noise of the level sigmas[-2] (where that is small, the data will do). sigmas: (N + 1,),
    decreasing to 0, as for sampling; the first is finite, and there the density is N(0, 1 + σ̄²), as sampling assumes.
    The ODE is integrated by Heun's method from the smallest level up; the error falls with N². Raises: InputError for
    other levels.
    """
    levels = check_sigmas(sigmas)[:-1].flip(0)  # increasing
    if not levels[-1].isfinite():
        raise InputError("the likelihood needs a finite first noise level; leave out the level where alpha is 0")
    total = x.new_zeros(len(x))

    def slope(at: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return exact_divergence(lambda y: y - denoise(y, sigma), at)

    for sigma, sigma_next in pairwise(levels):
        h = (sigma_next / sigma).log()
        value, div = slope(x, sigma)
        value_ahead, div_ahead = slope(x + h * value, sigma_next)
        x = x + h * (value + value_ahead) / 2
        total = total + h * (div + div_ahead) / 2
    variance = 1 + levels[-1] ** 2
    prior = -0.5 * (x**2 / variance + (2 * math.pi * variance).log()).flatten(1).sum(1)
    return prior + total
