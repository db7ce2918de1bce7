"""Ito SDEs against their schedules, by automatic differentiation, and against their own simulation."""

import math
from itertools import pairwise

import pytest
import torch

from ldm.diffusion import ItoSDE, predictions, schedules
from ldm.diffusion.prediction import training_target
from ldm.errors import InputError

NAMES = ["vp", "sub_vp", "ve"]
MEAN, STD = 0.5, 0.3  # of Gaussian data


def build(name: str) -> ItoSDE:
    sde = schedules.build(name, {"sigma_max": 10.0} if name == "ve" else {})
    assert isinstance(sde, ItoSDE)
    return sde


@pytest.mark.parametrize("name", NAMES)
def test_drift_and_diffusion_are_those_of_the_schedule(name):
    """drift_rate = d log alpha_t / dt and g² = d sigma_t² / dt − 2 drift_rate sigma_t², by differentiation."""
    sde = build(name)
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64, requires_grad=True)
    log_alpha, variance = sde.alpha_t(t).log(), sde.sigma_t(t) ** 2
    slope = torch.zeros_like(t)
    if log_alpha.requires_grad:
        (slope,) = torch.autograd.grad(log_alpha.sum(), t, retain_graph=True)
    (growth,) = torch.autograd.grad(variance.sum(), t)
    torch.testing.assert_close(sde.drift_rate(t), slope, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sde.diffusion(t) ** 2, growth - 2 * slope * variance, rtol=1e-9, atol=1e-12)


def test_the_formulas_are_the_papers():
    """Song et al. 2021, Eq. 29, with β from 0.1 to 20 and ∫β over [0, 1] = 10.05."""
    one, area = torch.ones(1, dtype=torch.float64), 10.05
    assert build("vp").alpha_t(one).item() == pytest.approx(math.exp(-area / 2))
    assert build("vp").sigma_t(one).item() ** 2 == pytest.approx(1 - math.exp(-area))
    assert build("sub_vp").sigma_t(one).item() ** 2 == pytest.approx((1 - math.exp(-area)) ** 2)
    assert build("ve").sigma_t(one).item() ** 2 == pytest.approx(10**2 - 0.01**2)
    x0 = torch.tensor([[2.0], [3.0]], dtype=torch.float64)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    torch.testing.assert_close(build("vp").drift(x0, t), -0.5 * (0.1 + t * 19.9)[:, None] * x0)


@pytest.mark.parametrize("name", NAMES)
def test_marginal_and_its_score(name):
    """The prediction `score` at x_t = alpha_t x0 + sigma_t eps is the gradient of log p(x_t | x0)."""
    sde, t = build(name), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    x0, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    alpha_t, sigma_t = sde.alpha_t(t)[:, None], sde.sigma_t(t)[:, None]
    x_t = (alpha_t * x0 + sigma_t * eps).requires_grad_()
    log_p = -((x_t - alpha_t * x0) ** 2) / (2 * sigma_t**2)
    score = training_target(predictions.build("score"), x0, eps, alpha_t, sigma_t)
    torch.testing.assert_close(score, torch.autograd.grad(log_p.sum(), x_t)[0])


@pytest.mark.parametrize("name", NAMES)
def test_simulated_forward_sde_has_the_closed_marginal(name):
    """Euler–Maruyama from one point: mean and variance at four times, within Monte-Carlo and step error."""
    sde, count, steps = build(name), 20_000, 2000
    generator = torch.Generator().manual_seed(0)
    x = torch.full((count,), 1.5, dtype=torch.float64)
    for i in range(steps):
        t = torch.full((count,), (i + 0.5) / steps, dtype=torch.float64)  # the middle of the step
        noise = torch.randn(count, generator=generator, dtype=torch.float64)
        x = x + sde.drift(x, t) / steps + sde.diffusion(t) / math.sqrt(steps) * noise
        if (i + 1) % (steps // 4) == 0:
            now = torch.tensor([(i + 1) / steps], dtype=torch.float64)
            mean, variance = 1.5 * sde.alpha_t(now).item(), sde.sigma_t(now).item() ** 2
            assert x.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / count) + 5e-3)
            assert x.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / count) + 2e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flow", [False, True])
def test_time_reversal_returns_to_the_data(name, flow):
    """With the exact score, the reverse SDE and the probability-flow ODE lead from t = 1 back to the data.

    The ODE's drift f − g² score / 2 (Song et al. 2021, Eq. 13) lies midway between the drifts of the two SDEs.
    """
    sde, count, steps, end = build(name), 20_000, 1000, 1e-3
    generator = torch.Generator().manual_seed(0)

    def moments(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sde.alpha_t(t) * MEAN, sde.alpha_t(t) ** 2 * STD**2 + sde.sigma_t(t) ** 2

    mean, variance = moments(torch.ones(1, dtype=torch.float64))
    x = mean + variance.sqrt() * torch.randn(count, generator=generator, dtype=torch.float64)
    grid = torch.linspace(1, end, steps + 1, dtype=torch.float64) ** 2  # finer towards the data
    for now, after in pairwise(grid):
        t, dt = ((now + after) / 2).expand(count), after - now
        mean, variance = moments(t)
        backward = sde.reverse_drift(x, t, -(x - mean) / variance)
        if flow:
            x = x + (sde.drift(x, t) + backward) / 2 * dt
        else:
            noise = torch.randn(count, generator=generator, dtype=torch.float64)
            x = x + backward * dt + sde.diffusion(t) * (-dt).sqrt() * noise
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(STD, rel=0.03)


@pytest.mark.parametrize("name", ["ve", "karras"])
def test_the_ends_of_the_noise_levels_must_be_in_order(name):
    with pytest.raises(InputError, match="sigma_min 2 must be below sigma_max 2"):
        schedules.build(name, {"sigma_min": 2.0, "sigma_max": 2.0})
