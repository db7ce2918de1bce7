"""Samplers against a Gaussian, whose denoiser and probability-flow ODE are known in closed form."""

import math
from itertools import pairwise

import pytest
import torch

from ldm import choices
from ldm.denoiser import Denoiser
from ldm.errors import InputError
from ldm.sampling import Streams, check_levels, states

SCHEDULE = {
    "flow": {},
    "linear": {"steps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"steps": 1000, "s": 0.008, "beta_max": 0.999},
}
SAMPLERS = {"euler": {}, "ddim": {"eta": 0.5}, "heun": {}, "dpmpp_2m": {}, "ddpm": {"variance": "beta_tilde"}}
SPACINGS = {
    "uniform": {},
    "karras": {"sigma_min": 0.02, "sigma_max": 50.0, "rho": 7.0},
    "log_snr": {"sigma_min": 0.02, "sigma_max": 50.0},
}
MEAN, STD = 0.4, 0.7  # of the data


def exact(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x0 | x̄] for data N(MEAN, STD²), where x̄ = x0 + σ̄ eps."""
    if sigma.isinf():
        return torch.full_like(x, MEAN)
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def exact_flow(x: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
    """The probability-flow ODE keeps (x̄ − mean) / √(STD² + σ̄²)."""
    return MEAN + (x - MEAN) * ((STD**2 + sigma_next**2) / (STD**2 + sigma**2)).sqrt()


class Exact(torch.nn.Module):
    """The network that makes a Denoiser with target x0 exact."""

    def __init__(self, schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        x_t = x * (alpha**2 + sigma**2).sqrt()
        return (MEAN + STD**2 * alpha / (alpha**2 * STD**2 + sigma**2) * (x_t - alpha * MEAN)).float()


def sampler(name: str, **options):
    return choices.build("samplers", name, SAMPLERS[name] | options)


def no_noise() -> torch.Tensor:
    raise AssertionError("a deterministic sampler drew noise")


def run(name: str, sigmas: torch.Tensor, x: torch.Tensor, noise=no_noise, **options) -> torch.Tensor:
    *_, end = sampler(name, **options)(exact, x, sigmas, noise)
    return end


def test_every_choice_is_tested():
    assert choices.known("samplers") == sorted(SAMPLERS)
    assert choices.known("spacings") == sorted(SPACINGS)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(name, order):
    """Halving the step between two positive levels divides the error by 2^order."""
    x = torch.tensor([2.0, -1.0], dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        sigmas = torch.logspace(math.log10(2.0), math.log10(0.5), steps + 1, dtype=torch.float64)
        options = {"eta": 0.0} if name == "ddim" else {}
        errors.append((run(name, sigmas, x, **options) - exact_flow(x, sigmas[0], sigmas[-1])).abs().max())
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.12)


def test_ddim_without_noise_is_euler():
    sigmas = torch.tensor([5.0, 2.0, 1.0, 0.2, 0.0], dtype=torch.float64)
    x = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(run("ddim", sigmas, x, eta=0.0), run("euler", sigmas, x), rtol=1e-12, atol=1e-12)


def test_ddim_with_full_noise_is_ancestral():
    sigmas = torch.tensor([5.0, 2.0, 1.0, 0.2, 0.0], dtype=torch.float64)
    draws = torch.randn(3, 6, dtype=torch.float64)
    x = torch.randn(6, dtype=torch.float64)
    ends = []
    for name, options in (("ddim", {"eta": 1.0}), ("ddpm", {})):
        ends.append(run(name, sigmas, x, iter(draws).__next__, **options))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
@pytest.mark.parametrize("i", [999, 500, 1])
def test_ddpm_step_is_the_textbooks(variance, i):
    """Ho et al. 2020, Eq. 7, in x-space, for a step of the linear chain."""
    chain = choices.build("schedules", "linear", SCHEDULE["linear"])
    beta, bar, bar_prev = chain.betas[i], chain.alphas_cumprod[i], chain.alphas_cumprod[i - 1]
    x_t, z = torch.randn(2, 5, dtype=torch.float64)
    sigma, sigma_prev = ((1 - bar) / bar).sqrt(), ((1 - bar_prev) / bar_prev).sqrt()
    x0 = exact(x_t / bar.sqrt(), sigma)
    mean = bar_prev.sqrt() * beta / (1 - bar) * x0 + (1 - beta).sqrt() * (1 - bar_prev) / (1 - bar) * x_t
    spread = {"beta_tilde": (1 - bar_prev) / (1 - bar) * beta, "beta": beta}[variance]
    steps = sampler("ddpm", variance=variance)(exact, x_t / bar.sqrt(), torch.stack([sigma, sigma_prev, torch.zeros_like(sigma)]), lambda: z)
    torch.testing.assert_close(next(steps) * bar_prev.sqrt(), mean + spread.sqrt() * z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_ancestral_variance_follows_its_recursion(variance):
    """On a Gaussian each step is affine: after N steps the variance is that of the recursion, not the data's."""
    sigmas = torch.logspace(1, -1, 11, dtype=torch.float64)
    wanted = STD**2 + sigmas[0] ** 2
    for s, n in pairwise(sigmas):
        shrink = (n / s) ** 2 + (1 - (n / s) ** 2) * STD**2 / (STD**2 + s**2)
        fresh = (n / s) ** 2 * (s**2 - n**2) if variance == "beta_tilde" else (1 + n**2) * (s**2 - n**2) / (1 + s**2)
        wanted = shrink**2 * wanted + fresh
    count = 200_000
    generator = torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    x = MEAN + (STD**2 + sigmas[0] ** 2).sqrt() * noise()
    end = run("ddpm", sigmas, x, noise, variance=variance)
    assert end.var().item() == pytest.approx(wanted.item(), rel=5 * math.sqrt(2 / count))
    assert end.mean().item() == pytest.approx(MEAN, abs=5 * math.sqrt(wanted / count))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("path", SCHEDULE)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_combination_reaches_the_data(name, path, spacing):
    """From pure noise to N(MEAN, STD²), by the denoiser of a network that is exact."""
    schedule = choices.build("schedules", path, SCHEDULE[path])
    denoiser = Denoiser(Exact(schedule), schedule, choices.build("targets", "x0", {}))
    sigmas = choices.build("spacings", spacing, SPACINGS[spacing])(schedule, 60)
    *_, end = states(denoiser, sampler(name), sigmas, Streams(0, range(4000), (1,)))
    # with 60 steps Euler and ancestral sampling leave a bias; a wrong sampler leaves far more
    assert end.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert end.std().item() == pytest.approx(STD, abs=0.07)


@pytest.mark.parametrize("path", SCHEDULE)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_spacings_decrease_to_zero(path, spacing):
    schedule = choices.build("schedules", path, SCHEDULE[path])
    sigmas = choices.build("spacings", spacing, SPACINGS[spacing])(schedule, 20)
    assert len(sigmas) == 21
    assert sigmas.dtype == torch.float64
    check_levels(sigmas)
    if spacing == "uniform":
        torch.testing.assert_close(schedule.t(-sigmas[:-1].log()), 1 - torch.arange(20, dtype=torch.float64) / 20)
    else:
        assert sigmas[0].item() == pytest.approx(50, rel=0.02)


def test_karras_levels_are_the_papers():
    flow = choices.build("schedules", "flow", {})
    sigmas = choices.build("spacings", "karras", {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0})(flow, 18)
    for i in range(18):
        assert sigmas[i].item() == pytest.approx((80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)


def test_more_steps_than_the_chain_has_are_refused():
    chain = choices.build("schedules", "linear", SCHEDULE["linear"] | {"steps": 100})
    for spacing, options in SPACINGS.items():
        with pytest.raises(InputError, match=r"fewer steps|at most that many"):
            choices.build("spacings", spacing, options)(chain, 101)


@pytest.mark.parametrize("levels", [[1.0, 2.0, 0.0], [2.0, 2.0, 0.0], [2.0, 1.0], [0.0]])
def test_bad_levels_are_refused(levels):
    with pytest.raises(InputError, match="decrease strictly"):
        check_levels(torch.tensor(levels))


@pytest.mark.parametrize("name", SAMPLERS)
def test_batches_never_change_a_sample(name):
    schedule = choices.build("schedules", "flow", {})
    denoiser = Denoiser(Exact(schedule), schedule, choices.build("targets", "x0", {}))
    sigmas = choices.build("spacings", "uniform", {})(schedule, 8)

    def draw(indices) -> torch.Tensor:
        *_, end = states(denoiser, sampler(name), sigmas, Streams(3, indices, (1,)))
        return end

    together = draw(range(40))
    torch.testing.assert_close(draw([17])[0], together[17], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat([draw(range(25)), draw(range(25, 40))]), together, rtol=1e-6, atol=1e-6)


def test_streams_differ_by_seed_and_index():
    shape = (2, 3)
    a, b, c = (Streams(seed, range(3), shape)() for seed in (0, 1, 2**40))
    flat = torch.cat([a, b, c]).flatten(1)
    assert len(flat.unique(dim=0)) == 9
    stream = Streams(0, range(3), shape)
    assert torch.equal(stream(), a)
    assert not torch.equal(stream(), a)
