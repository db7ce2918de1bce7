"""Samplers against Gaussians and their mixtures, whose denoiser and probability-flow ODE are known in closed form."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from test_core import SCHEDULES

from ldm import choices
from ldm.denoiser import Denoiser, Guided
from ldm.errors import InputError
from ldm.sampling import Streams, check_levels, states, wrong_start

SAMPLERS = {
    "euler": {},
    "ddim": {"eta": 0.5},
    "heun": {"S_churn": 0.0, "S_min": 0.0, "S_max": 1e3, "S_noise": 1.0},
    "dpmpp_2m": {"eta": 0.0},
    "dpmpp_3m": {},
    "ddpm": {"variance": "beta_tilde"},
    "euler_maruyama": {},
    "predictor_corrector": {"corrections": 1, "snr": 0.16},
}
SPACINGS = {
    "trailing": {},
    "uniform": {"t_min": 0.005},
    "karras": {"sigma_min": 0.02, "sigma_max": 30.0, "rho": 7.0},
    "log_snr": {"sigma_min": 0.05, "sigma_max": 20.0},
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
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]  # x: (B, d)
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


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("dpmpp_3m", 3)])
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
    chain = choices.build("schedules", "linear", SCHEDULES["linear"])
    bar, bar_prev = chain.alphas[i] ** 2, chain.alphas[i - 1] ** 2
    beta = 1 - bar / bar_prev
    x_t, z = torch.randn(2, 5, dtype=torch.float64)
    sigma, sigma_prev = ((1 - bar) / bar).sqrt(), ((1 - bar_prev) / bar_prev).sqrt()
    x0 = exact(x_t / bar.sqrt(), sigma)
    mean = bar_prev.sqrt() * beta / (1 - bar) * x0 + (1 - beta).sqrt() * (1 - bar_prev) / (1 - bar) * x_t
    spread = {"beta_tilde": (1 - bar_prev) / (1 - bar) * beta, "beta": beta}[variance]
    steps = sampler("ddpm", variance=variance)(exact, x_t / bar.sqrt(), torch.stack([sigma, sigma_prev, torch.zeros_like(sigma)]), lambda: z)
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
    """(mean, variance) after all steps of an affine sampler, exactly: its response to unit impulses of the start and of each draw."""
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
    wanted = recursion(name, sigmas)
    mean, variance = response(name, sigmas)
    assert variance == pytest.approx(wanted, rel=1e-9)
    assert mean == pytest.approx(MEAN, abs=1e-12)
    count, generator = 200_000, torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    word, options = AFFINE[name]
    end = run(word, sigmas, MEAN + (STD**2 + sigmas[0] ** 2).sqrt() * noise(), noise, **options)
    assert end.var().item() == pytest.approx(wanted, rel=5 * math.sqrt(2 / count))
    assert end.mean().item() == pytest.approx(MEAN, abs=5 * math.sqrt(wanted / count))


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("ddpm", 1), ("ddpm_beta", 1), ("euler_maruyama", 1), ("heun", 2), ("dpmpp_2m_sde", 2)])
def test_bias_of_the_variance_vanishes_at_the_samplers_rate(name, order):
    """Between two positive levels the variance tends to STD² + σ̄² as 1 / N^order."""
    biases = []
    for steps in (80, 160, 320):
        sigmas = torch.logspace(math.log10(3), math.log10(0.3), steps + 1, dtype=torch.float64)
        biases.append(response(name, sigmas)[1] - (STD**2 + 0.3**2))
    for coarse, fine in pairwise(biases):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_twenty_ancestral_steps_leave_a_unit_gaussian_too_narrow():
    chain = choices.build("schedules", "linear", SCHEDULES["linear"])
    sigmas = choices.build("spacings", "trailing", {})(chain, 20)
    variance = 1 + sigmas[0].item() ** 2
    for s, n in pairwise(sigmas.tolist()):
        ratio = (n / s) ** 2
        variance = (ratio + (1 - ratio) / (1 + s**2)) ** 2 * variance + ratio * (s**2 - n**2)
    assert variance == pytest.approx(0.71, abs=0.02)
    *_, end = sampler("ddpm")(lambda x, sigma: x / (1 + sigma**2), (1 + sigmas[0] ** 2).sqrt() * NORMAL(), sigmas, NORMAL)
    assert end.var().item() == pytest.approx(variance, rel=0.02)


NORMAL = partial(torch.randn, 50_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_corrections_reduce_the_bias_of_the_predictor():
    """Few Euler–Maruyama steps leave a Gaussian of wrong variance; Langevin steps at each level mend most of it."""
    sigmas = torch.cat([torch.logspace(1, -1.5, 9, dtype=torch.float64), torch.zeros(1)])
    wide = []
    for corrections in (0, 8):
        noise = Streams(0, range(400), (256,))
        x = MEAN + (STD**2 + sigmas[0] ** 2).sqrt() * noise()
        wide.append(run("predictor_corrector", sigmas, x, noise, corrections=corrections, snr=0.2).var().item())
    assert abs(wide[0] / STD**2 - 1) > 0.05
    assert abs(wide[1] / STD**2 - 1) < abs(wide[0] / STD**2 - 1) / 2


def test_churn_renews_the_noise_and_keeps_the_distribution():
    sigmas = choices.build("spacings", "karras", SPACINGS["karras"])(choices.build("schedules", "edm", SCHEDULES["edm"]), 80)
    noise = Streams(0, range(30_000), (1,))
    start = MEAN + (STD**2 + sigmas[0] ** 2).sqrt() * noise()
    calm, churned = (run("heun", sigmas, start, noise, S_churn=churn, S_noise=1.0) for churn in (0.0, 20.0))
    assert churned.std().item() == pytest.approx(STD, rel=0.02)
    correlation = torch.corrcoef(torch.cat([calm, churned], 1).T)[0, 1].item()
    assert correlation < 0.5
    half = run("heun", sigmas, start, noise, S_churn=20.0, S_min=1e3)  # no level is in range
    torch.testing.assert_close(half, calm)


def mixture(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x0 | x̄] for 0.3 N(−1, 0.1²) + 0.7 N(1, 0.1²)."""
    means, shares, variance = torch.tensor([-1.0, 1.0], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64), 0.01
    logits = shares.log() - (x[..., None] - means) ** 2 / (2 * (variance + sigma**2))
    posterior = means + variance / (variance + sigma**2) * (x[..., None] - means)
    return (logits.softmax(-1) * posterior).sum(-1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_mixture_is_sampled_in_its_shares(name):
    count = 20_000
    sigmas = torch.cat([torch.logspace(2, -2, 300, dtype=torch.float64), torch.zeros(1)])
    noise = Streams(0, range(count // 8), (8,))  # eight independent elements a sample
    *_, end = sampler(name)(mixture, sigmas[0] * noise(), sigmas, noise)
    right = end > 0
    assert right.double().mean().item() == pytest.approx(0.7, abs=0.04 if name == "predictor_corrector" else 0.018)
    for side, centre in ((end[right], 1.0), (end[~right], -1.0)):
        assert side.mean().item() == pytest.approx(centre, abs=0.01)
        assert side.std().item() == pytest.approx(0.1, rel=0.3 if name == "predictor_corrector" else 0.2)


def test_a_denoiser_refuses_levels_that_are_none():
    chain = choices.build("schedules", "linear", SCHEDULES["linear"])
    denoiser = Denoiser(Exact(chain), chain, choices.build("targets", "x0", {}))
    x = torch.randn(2, 1, dtype=torch.float64)
    for level, words in ((0.0, "must be above 0"), (-1.0, "must be above 0"), (0.12345, "no noise level 0.12345")):
        with pytest.raises(InputError, match=words):
            denoiser(x, torch.tensor(level, dtype=torch.float64))


def test_guidance_moves_away_from_the_guide():
    chosen = choices.build("schedules", "edm", SCHEDULES["edm"])
    main, guide = (Denoiser(Exact(chosen), chosen, choices.build("targets", "x0", {})) for _ in range(2))
    guide.network = torch.nn.Module()
    guide.network.forward = lambda x, t: torch.zeros_like(x)
    x = torch.randn(5, 1, dtype=torch.float64)
    low, high = torch.tensor(0.5, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    guided = Guided(main, guide, weight=3.0, sigma_min=0.2, sigma_max=1.0)
    torch.testing.assert_close(guided(x, low), 3 * main(x, low), rtol=1e-5, atol=1e-6)
    for outside in (high, 0.2 * low):
        torch.testing.assert_close(guided(x, outside), main(x, outside))
    torch.testing.assert_close(Guided(main, guide, weight=1.0, sigma_min=0.2, sigma_max=1.0)(x, low), main(x, low))


def reach_the_data(name: str, path: str, spacing: str) -> None:
    """From pure noise to N(MEAN, STD²), by the denoiser of a network that is exact."""
    schedule = choices.build("schedules", path, SCHEDULES[path])
    denoiser = Denoiser(Exact(schedule), schedule, choices.build("targets", "x0", {}))
    sigmas = choices.build("spacings", spacing, SPACINGS[spacing])(schedule, 60)
    *_, end = states(denoiser, sampler(name), sigmas, Streams(0, range(60), (64,)))
    # with 60 steps the samplers of first order leave a bias; a wrong sampler leaves far more
    assert end.mean().item() == pytest.approx(MEAN, abs=0.06)
    assert end.std().item() == pytest.approx(STD, abs=0.07)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("path", SCHEDULES)
def test_every_sampler_on_every_schedule(name, path):
    # Euler–Maruyama renews the noise of a whole step, so its levels must not fall too fast
    reach_the_data(name, path, "karras" if name in ("euler_maruyama", "predictor_corrector") else "trailing")


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_from_noise_alone_gives_the_mean(name):
    schedule = choices.build("schedules", "flow", {})
    denoiser = Denoiser(Exact(schedule), schedule, choices.build("targets", "x0", {}))
    sigmas = choices.build("spacings", "trailing", {})(schedule, 1)
    *_, end = states(denoiser, sampler(name), sigmas, Streams(0, range(4), (3,)))
    torch.testing.assert_close(end, torch.full_like(end, MEAN))


@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_spacing_on_every_schedule(path, spacing):
    reach_the_data("dpmpp_2m", path, spacing)


@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_spacings_decrease_to_zero(path, spacing):
    schedule = choices.build("schedules", path, SCHEDULES[path])
    sigmas = choices.build("spacings", spacing, SPACINGS[spacing])(schedule, 20)
    assert len(sigmas) == 21
    assert sigmas.dtype == torch.float64
    check_levels(sigmas)
    if spacing in ("trailing", "uniform"):
        end = 0.05 if spacing == "trailing" else 0.005
        torch.testing.assert_close(schedule.t(-sigmas[:-1].log()), schedule.snap(torch.linspace(1, end, 20, dtype=torch.float64)))
    else:
        assert sigmas[0].item() == pytest.approx(SPACINGS[spacing]["sigma_max"], rel=0.03)


def test_karras_levels_are_the_papers():
    flow = choices.build("schedules", "flow", {})
    sigmas = choices.build("spacings", "karras", {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0})(flow, 18)
    for i in range(18):
        assert sigmas[i].item() == pytest.approx((80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)


@pytest.mark.parametrize(("ends", "words"), [((0.002, 100.0), "100 to 0.002"), ((0.0001, 80.0), "80 to 0.0001")])
def test_levels_beyond_the_schedule_are_refused(ends, words):
    """A network was never trained there."""
    schedule = choices.build("schedules", "edm", {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "steps": None})
    with pytest.raises(InputError, match=f"the noise levels {words} are not all on the schedule"):
        choices.build("spacings", "karras", {"sigma_min": ends[0], "sigma_max": ends[1], "rho": 7.0})(schedule, 10)


def test_too_little_noise_is_a_wrong_start():
    assert wrong_start(torch.tensor([80.0, 1.0, 0.0])) is None
    assert wrong_start(torch.tensor([math.inf, 1.0, 0.0])) is None
    assert "sampling starts at σ̄ = 1, where the SNR is 1, above 0.001" in (wrong_start(torch.tensor([1.0, 0.1, 0.0])) or "")


def test_more_steps_than_the_chain_has_are_refused():
    chain = choices.build("schedules", "linear", SCHEDULES["linear"] | {"steps": 100})
    for spacing, options in SPACINGS.items():
        with pytest.raises(InputError, match="101 sampling steps are more than the chain's 100"):
            choices.build("spacings", spacing, options)(chain, 101)
        with pytest.raises(InputError, match="0 sampling steps are too few"):
            choices.build("spacings", spacing, options)(chain, 0)


@pytest.mark.parametrize("levels", [[1.0, 2.0, 0.0], [2.0, 2.0, 0.0], [2.0, 1.0], [0.0]])
def test_bad_levels_are_refused(levels):
    with pytest.raises(InputError, match="decrease strictly"):
        check_levels(torch.tensor(levels))


@pytest.mark.parametrize("name", SAMPLERS)
def test_batches_never_change_a_sample(name):
    schedule = choices.build("schedules", "flow", {})
    denoiser = Denoiser(Exact(schedule), schedule, choices.build("targets", "x0", {}))
    sigmas = choices.build("spacings", "trailing", {})(schedule, 8)

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
