"""Samplers against Gaussians and their mixtures, whose denoiser and probability-flow ODE are known in closed form."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from gaussian import MEAN, STD, exact, exact_flow

from ldm.diffusion import schedules
from ldm.sampling import Streams, samplers, spacings

NORMAL = partial(torch.randn, 50_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def no_noise() -> torch.Tensor:
    raise AssertionError("a deterministic sampler drew noise")


def run(name: str, sigmas: torch.Tensor, x: torch.Tensor, noise=no_noise, **options) -> torch.Tensor:
    *_, end = samplers.build(name, options)(exact, x, sigmas, noise)
    return end


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("dpmpp_3m", 3)])
def test_order_of_convergence(name, order):
    """Halving the step between two positive levels divides the error by 2^order."""
    x = torch.tensor([2.0, -1.0], dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        sigmas = torch.logspace(math.log10(2.0), math.log10(0.5), steps + 1, dtype=torch.float64)
        errors.append((run(name, sigmas, x) - exact_flow(x, sigmas[0], sigmas[-1])).abs().max())
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
    chain = schedules.build("linear")
    bar, bar_prev = chain.alphas[i] ** 2, chain.alphas[i - 1] ** 2
    beta = 1 - bar / bar_prev
    x_t, z = torch.randn(2, 5, dtype=torch.float64)
    sigma, sigma_prev = ((1 - bar) / bar).sqrt(), ((1 - bar_prev) / bar_prev).sqrt()
    x0 = exact(x_t / bar.sqrt(), sigma)
    mean = bar_prev.sqrt() * beta / (1 - bar) * x0 + (1 - beta).sqrt() * (1 - bar_prev) / (1 - bar) * x_t
    spread = {"beta_tilde": (1 - bar_prev) / (1 - bar) * beta, "beta": beta}[variance]
    sigmas = torch.stack([sigma, sigma_prev, torch.zeros_like(sigma)])
    steps = samplers.build("ddpm", {"variance": variance})(exact, x_t / bar.sqrt(), sigmas, lambda: z)
    torch.testing.assert_close(next(steps) * bar_prev.sqrt(), mean + spread.sqrt() * z, rtol=1e-9, atol=1e-9)


def one_step(name: str, s: float, n: float) -> tuple[float, float]:
    """(shrink of x̄ − MEAN, fresh variance) of a step from σ̄ = s to n on the Gaussian, from the papers' formulas."""
    gain = STD**2 / (STD**2 + s**2)  # D − MEAN = gain (x̄ − MEAN)
    ratio = (n / s) ** 2
    if name == "euler":
        return gain + n / s * (1 - gain), 0.0
    if name.startswith("ddpm"):  # Ho et al. 2020, Eq. 7 and section 3.2
        fresh = {"ddpm": ratio * (s**2 - n**2), "ddpm_beta": (1 + n**2) * (s**2 - n**2) / (1 + s**2)}[name]
        return ratio + (1 - ratio) * gain, fresh if n else 0.0
    if name == "ddim":  # Song et al. 2021, Eqs. 12 and 16 with η = 0.5
        fresh = 0.25 * ratio * (s**2 - n**2)
        return gain + math.sqrt(n**2 - fresh) / s * (1 - gain), fresh
    if name == "euler_maruyama":  # x̄ + g² Δt score + g √Δt z with g² Δt = s² − n²
        return 1 - (s**2 - n**2) / (STD**2 + s**2), (s**2 - n**2) if n else 0.0
    if name == "heun":  # Karras et al. 2022, Alg. 1: slope a(σ) (x̄ − MEAN), a = σ / (STD² + σ²)
        first, second = s / (STD**2 + s**2), n / (STD**2 + n**2)
        ahead = 1 + (n - s) * first
        return (1 + (n - s) * (first + second * ahead) / 2) if n else ahead, 0.0
    raise AssertionError(name)


def recursion(name: str, sigmas: torch.Tensor) -> float:
    """The variance after all steps, from one of STD² + σ̄² at the first level."""
    if name == "dpmpp_2m_sde":
        return multistep_sde(sigmas.tolist())
    variance = STD**2 + sigmas[0].item() ** 2
    for s, n in pairwise(sigmas.tolist()):
        shrink, fresh = one_step(name, s, n)
        variance = shrink**2 * variance + fresh
    return variance


def multistep_sde(sigmas: list[float]) -> float:
    """SDE-DPM-Solver++(2M), Lu et al. 2022, section 4 and appendix: coefficients of the start and of every draw."""
    x = torch.zeros(len(sigmas), dtype=torch.float64)
    x[0] = math.sqrt(STD**2 + sigmas[0] ** 2)
    before, h_before = None, None
    for k, (s, n) in enumerate(pairwise(sigmas), 1):
        denoised = STD**2 / (STD**2 + s**2) * x
        if n == 0:
            return denoised.square().sum().item()
        h = math.log(s / n)
        lift = 1 - math.exp(-2 * h)
        x_next = n / s * math.exp(-h) * x + lift * denoised
        if before is not None:
            x_next = x_next + lift / 2 * h / h_before * (denoised - before)
        x_next[k] += n * math.sqrt(lift)
        x, before, h_before = x_next, denoised, h
    raise AssertionError


AFFINE = {
    "euler": ("euler", {}),
    "ddim": ("ddim", {"eta": 0.5}),
    "heun": ("heun", {}),
    "ddpm": ("ddpm", {"variance": "beta_tilde"}),
    "ddpm_beta": ("ddpm", {"variance": "beta"}),
    "euler_maruyama": ("euler_maruyama", {}),
    "dpmpp_2m_sde": ("dpmpp_2m", {"eta": 1.0}),
}


def response(name: str, sigmas: torch.Tensor) -> tuple[float, float]:
    """(mean, variance) after all steps of an affine sampler, exactly.

    By its response to unit impulses of the start and of each draw.
    """
    count = 2 * len(sigmas) + 2
    draws = iter(torch.eye(count, dtype=torch.float64)[2:])
    x = torch.zeros(count, dtype=torch.float64)
    x[1] = 1
    word, options = AFFINE[name]
    end = run(word, sigmas, x, draws.__next__, **options)
    at_mean = end[0] + MEAN * (end[1] - end[0])
    gains = end[1:] - end[0]
    gains[0] *= (STD**2 + sigmas[0] ** 2).sqrt()
    return at_mean.item(), gains.square().sum().item()


@pytest.mark.parametrize("name", AFFINE)
def test_moments_follow_the_recursion(name):
    """On a Gaussian each step is affine: after N steps the variance is that of the recursion, not the data's."""
    sigmas = torch.cat([torch.logspace(1, -1, 11, dtype=torch.float64), torch.zeros(1)])
    expected = recursion(name, sigmas)
    mean, variance = response(name, sigmas)
    assert variance == pytest.approx(expected, rel=1e-9)
    assert mean == pytest.approx(MEAN, abs=1e-12)
    count, generator = 200_000, torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    word, options = AFFINE[name]
    end = run(word, sigmas, MEAN + (STD**2 + sigmas[0] ** 2).sqrt() * noise(), noise, **options)
    assert end.var().item() == pytest.approx(expected, rel=5 * math.sqrt(2 / count))
    assert end.mean().item() == pytest.approx(MEAN, abs=5 * math.sqrt(expected / count))


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("ddim", 1), ("ddpm", 1), ("ddpm_beta", 1), ("euler_maruyama", 1), ("heun", 2), ("dpmpp_2m_sde", 2)],
)
def test_bias_of_the_variance_vanishes_at_the_samplers_rate(name, order):
    """Between two positive levels the variance tends to STD² + σ̄² as 1 / N^order."""
    biases = []
    for steps in (80, 160, 320):
        sigmas = torch.logspace(math.log10(3), math.log10(0.3), steps + 1, dtype=torch.float64)
        biases.append(response(name, sigmas)[1] - (STD**2 + 0.3**2))
    for coarse, fine in pairwise(biases):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_corrections_reduce_the_bias_of_the_predictor():
    """Few Euler–Maruyama steps leave a Gaussian of wrong variance; Langevin steps at each level mend most of it."""
    sigmas = torch.cat([torch.logspace(1, -1.5, 9, dtype=torch.float64), torch.zeros(1)])
    variances = []
    for corrections in (0, 8):
        noise = Streams(0, range(400), (256,))
        x = MEAN + (STD**2 + sigmas[0] ** 2).sqrt() * noise()
        end = run("predictor_corrector", sigmas, x, noise, corrections=corrections, snr=0.2)
        variances.append(end.var().item())
    assert abs(variances[0] / STD**2 - 1) > 0.05
    assert abs(variances[1] / STD**2 - 1) < abs(variances[0] / STD**2 - 1) / 2


def test_churn_renews_the_noise_and_keeps_the_distribution():
    sigmas = spacings.build("karras", {"sigma_min": 0.02, "sigma_max": 30.0})(schedules.build("karras"), 80)
    noise = Streams(0, range(30_000), (1,))
    start = MEAN + (STD**2 + sigmas[0] ** 2).sqrt() * noise()
    calm, churned = (run("heun", sigmas, start, noise, S_churn=churn, S_noise=1.0) for churn in (0.0, 20.0))
    assert churned.std().item() == pytest.approx(STD, rel=0.02)
    correlation = torch.corrcoef(torch.cat([calm, churned], 1).T)[0, 1].item()
    assert correlation < 0.5
    out_of_range = run("heun", sigmas, start, noise, S_churn=20.0, S_min=1e3)
    torch.testing.assert_close(out_of_range, calm)


def mixture(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x0 | x̄] for 0.3 N(−1, 0.1²) + 0.7 N(1, 0.1²)."""
    means, shares = torch.tensor([[-1.0, 1.0], [0.3, 0.7]], dtype=torch.float64)
    variance = 0.01
    logits = shares.log() - (x[..., None] - means) ** 2 / (2 * (variance + sigma**2))
    posterior = means + variance / (variance + sigma**2) * (x[..., None] - means)
    return (logits.softmax(-1) * posterior).sum(-1)


@pytest.mark.parametrize("name", sorted(samplers.functions))
def test_a_mixture_is_sampled_in_its_shares(name):
    count = 20_000
    sigmas = torch.cat([torch.logspace(2, -2, 300, dtype=torch.float64), torch.zeros(1)])
    noise = Streams(0, range(count // 8), (8,))  # eight independent elements a sample
    sampler = samplers.build(name, {"eta": 0.5} if name == "ddim" else {})
    *_, end = sampler(mixture, sigmas[0] * noise(), sigmas, noise)
    right = end > 0
    assert right.double().mean().item() == pytest.approx(0.7, abs=0.04 if name == "predictor_corrector" else 0.018)
    for side, centre in ((end[right], 1.0), (end[~right], -1.0)):
        assert side.mean().item() == pytest.approx(centre, abs=0.01)
        assert side.std().item() == pytest.approx(0.1, rel=0.3 if name == "predictor_corrector" else 0.2)
