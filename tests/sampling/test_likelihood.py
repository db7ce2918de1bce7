"""Log-likelihood by the probability-flow ODE, on distributions whose density is known."""

import math
from itertools import pairwise

import pytest
import torch

from ldm.errors import InputError
from ldm.sampling.likelihood import exact_divergence, log_likelihood

STD = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)  # of independent elements; their mean is 0


def gaussian(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return STD**2 / (STD**2 + sigma**2) * x


def unit(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return x / (1 + sigma**2)


def levels(steps: int, high: float = 1000.0, low: float = 1e-3) -> torch.Tensor:
    return torch.cat([torch.logspace(math.log10(high), math.log10(low), steps, dtype=torch.float64), torch.zeros(1)])


def truth(x: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    return -0.5 * (x**2 / variance + (2 * math.pi * variance).log()).sum(1)


def test_a_gaussian_in_closed_form():
    x = torch.randn(50, 3, dtype=torch.float64) * STD
    found = log_likelihood(gaussian, x, levels(1200))
    torch.testing.assert_close(found, truth(x, STD**2 + 1e-6), rtol=0, atol=4e-3)


def test_the_error_falls_with_the_square_of_the_steps():
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # data of unit variance: the density assumed at the last level is exact, and the step error is all there is
    expected = truth(x, torch.full((3,), 1.01, dtype=torch.float64))
    errors = [(log_likelihood(unit, x, levels(n, 50.0, 0.1)) - expected).abs().max().item() for n in (41, 81, 161)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.2)


def test_the_divergence_is_the_trace_of_the_jacobian():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    matrix = torch.randn(3, 3, dtype=torch.float64, generator=generator)

    def turn(y: torch.Tensor) -> torch.Tensor:
        return torch.sin(y @ matrix)

    value, divergence = exact_divergence(turn, x)
    torch.testing.assert_close(value, turn(x))
    jacobians = [torch.autograd.functional.jacobian(lambda y: turn(y[None])[0], row) for row in x]
    torch.testing.assert_close(divergence, torch.stack([jacobian.trace() for jacobian in jacobians]))


def test_levels_that_will_not_do():
    x = torch.zeros(1, 3, dtype=torch.float64)
    with pytest.raises(InputError, match="finite"):
        log_likelihood(gaussian, x, torch.tensor([math.inf, 1.0, 0.0], dtype=torch.float64))
    with pytest.raises(InputError, match="must decrease"):
        log_likelihood(gaussian, x, torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
