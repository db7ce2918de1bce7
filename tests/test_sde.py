"""Ito SDEs against their schedules, by automatic differentiation, and against their own simulation."""

import math
from itertools import pairwise

import pytest
import torch
from test_core import SCHEDULES

from ldm import choices
from ldm.sde import ItoSDE

NAMES = ["vp", "sub_vp", "ve"]
MEAN, STD = 0.5, 0.3  # of Gaussian data
OPTIONS = SCHEDULES | {"ve": {"sigma_min": 0.01, "sigma_max": 10.0}}


def build(name: str) -> ItoSDE:
    sde = choices.build("schedules", name, OPTIONS[name])
    assert isinstance(sde, ItoSDE)
    return sde


@pytest.mark.parametrize("name", NAMES)
def test_drift_and_diffusion_are_those_of_the_schedule(name):
    """rate = d log alpha / dt and g² = d sigma² / dt − 2 rate sigma², by automatic differentiation."""
    sde = build(name)
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64, requires_grad=True)
    log_alpha, variance = sde.alpha(t).log(), sde.sigma(t) ** 2
    slope = torch.autograd.grad(log_alpha.sum(), t, retain_graph=True)[0] if log_alpha.requires_grad else torch.zeros_like(t)
    (growth,) = torch.autograd.grad(variance.sum(), t)
    torch.testing.assert_close(sde.rate(t), slope, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sde.diffusion(t) ** 2, growth - 2 * slope * sde.conditional_variance(t), rtol=1e-9, atol=1e-12)


def test_the_formulas_are_the_papers():
    """Song et al. 2021, Eq. 29, with β from 0.1 to 20 and ∫β over [0, 1] = 10.05."""
    one, area = torch.ones(1, dtype=torch.float64), 10.05
    assert build("vp").alpha(one).item() == pytest.approx(math.exp(-area / 2))
    assert build("vp").conditional_variance(one).item() == pytest.approx(1 - math.exp(-area))
    assert build("sub_vp").conditional_variance(one).item() == pytest.approx((1 - math.exp(-area)) ** 2)
    assert build("ve").conditional_variance(one).item() == pytest.approx(10**2 - 0.01**2)
    x0 = torch.tensor([[2.0], [3.0]], dtype=torch.float64)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    torch.testing.assert_close(build("vp").drift(x0, t), -0.5 * (0.1 + t * 19.9)[:, None] * x0)


@pytest.mark.parametrize("name", NAMES)
def test_marginal_and_its_score(name):
    sde, t = build(name), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    x0, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    x_t, score = sde.marginal(x0, t, eps)
    x_t = x_t.requires_grad_()
    variance = sde.conditional_variance(t)[:, None]
    log_p = -((x_t - sde.conditional_mean(x0, t)) ** 2) / (2 * variance)
    torch.testing.assert_close(score, torch.autograd.grad(log_p.sum(), x_t)[0])


@pytest.mark.parametrize("name", NAMES)
def test_simulated_forward_sde_has_the_closed_marginal(name):
    """Euler–Maruyama from one point: mean and variance at three times, within Monte-Carlo and step error."""
    sde, count, steps = build(name), 20_000, 2000
    generator = torch.Generator().manual_seed(0)
    x = torch.full((count,), 1.5, dtype=torch.float64)
    for i in range(steps):
        t = torch.full((count,), (i + 0.5) / steps, dtype=torch.float64)  # the middle of the step
        x = x + sde.drift(x, t) / steps + sde.diffusion(t) / math.sqrt(steps) * torch.randn(count, generator=generator, dtype=torch.float64)
        if (i + 1) % (steps // 4) == 0:
            now = torch.tensor([(i + 1) / steps], dtype=torch.float64)
            variance = sde.conditional_variance(now).item()
            assert x.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / count) + 5e-3)
            assert x.mean().item() == pytest.approx(1.5 * sde.alpha(now).item(), abs=5 * math.sqrt(variance / count) + 2e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flow", [False, True])
def test_time_reversal_returns_to_the_data(name, flow):
    """With the exact score, the reverse SDE and the probability-flow ODE lead from the marginal at t = 1 back to the data."""
    sde, count, steps, end = build(name), 20_000, 1000, 1e-3
    generator = torch.Generator().manual_seed(0)

    def moments(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sde.alpha(t) * MEAN, sde.alpha(t) ** 2 * STD**2 + sde.sigma(t) ** 2

    one = torch.ones(1, dtype=torch.float64)
    mean, variance = moments(one)
    x = mean + variance.sqrt() * torch.randn(count, generator=generator, dtype=torch.float64)
    grid = torch.linspace(1, end, steps + 1, dtype=torch.float64) ** 2  # finer towards the data
    for now, after in pairwise(grid):
        t, dt = ((now + after) / 2).expand(count), after - now
        mean, variance = moments(t)
        score = -(x - mean) / variance
        if flow:
            x = x + sde.flow_drift(x, t, score) * dt
        else:
            x = x + sde.reverse_drift(x, t, score) * dt + sde.diffusion(t) * (-dt).sqrt() * torch.randn(count, generator=generator, dtype=torch.float64)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(STD, rel=0.03)
