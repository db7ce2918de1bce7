"""Schedules, targets, weightings and training times against their formulas, in float64."""

import math

import pytest
import torch

from ldm import choices
from ldm.denoiser import Denoiser
from ldm.errors import InputError
from ldm.loss import diffusion_loss
from ldm.schedule import Schedule
from ldm.target import eps_from, prediction, x0_error_scale, x0_from

BETAS = {"steps": 1000, "zero_terminal_snr": False, "beta_start": 1e-4, "beta_end": 0.02, "scaled": True}
COSINE = {"steps": 1000, "zero_terminal_snr": False, "s": 0.008, "beta_max": 0.999}
SCHEDULES = {
    "flow": {},
    "linear": BETAS,
    "quadratic": BETAS,
    "sigmoid": BETAS,
    "cosine": COSINE,
    "vp": {"beta_min": 0.1, "beta_max": 20.0},
    "sub_vp": {"beta_min": 0.1, "beta_max": 20.0},
    "ve": {"sigma_min": 0.01, "sigma_max": 80.0},
    "edm": {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "steps": None},
}
CHAINS = ["linear", "quadratic", "sigmoid", "cosine"]
TARGETS = {"eps": {}, "flow": {}, "v": {}, "x0": {}, "score": {}, "edm": {"sigma_data": 0.5}}
TIMES = {"uniform": {}, "logit_normal": {"mean": -0.5, "std": 0.8}, "log_normal": {"P_mean": -1.2, "P_std": 1.2}}
WEIGHTINGS = {"uniform": {}, "snr": {}, "min_snr": {"gamma": 5.0}, "edm": {"sigma_data": 0.5}}
LOSSES = {"l1": {}, "l2": {}, "huber": {"delta": 0.5}}


def schedule(name: str) -> Schedule:
    return choices.build("schedules", name, SCHEDULES[name])


def grid(chosen: Schedule, n: int = 200) -> torch.Tensor:
    """Times in (0, 1) that the schedule has."""
    return chosen.snap(torch.linspace(0.005, 0.995, n, dtype=torch.float64)).unique()


def test_every_choice_is_tested():
    assert choices.known("schedules") == sorted(SCHEDULES)
    assert choices.known("times") == sorted(TIMES)
    assert choices.known("weightings") == sorted(WEIGHTINGS)
    assert choices.known("targets") == sorted(TARGETS)
    assert choices.known("losses") == sorted(LOSSES)


@pytest.mark.parametrize("name", [*CHAINS, "vp"])
def test_variance_preserving(name):
    chosen = schedule(name)
    t = grid(chosen)
    torch.testing.assert_close(chosen.alpha(t) ** 2 + chosen.sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-14)
    assert chosen.alpha(torch.ones(1)).item() ** 2 < 1e-3  # N(0, I) is the right start


def beta_of(name: str, u: float) -> float:
    """β at u in [0, 1], as the reference documents state it for T = 1000."""
    low, high = 1e-4, 0.02
    return {
        "linear": low + (high - low) * u,
        "quadratic": (low**0.5 + (high**0.5 - low**0.5) * u) ** 2,
        "sigmoid": low + (high - low) / (1 + math.exp(6 - 12 * u)),
    }[name]


@pytest.mark.parametrize("name", ["linear", "quadratic", "sigmoid"])
@pytest.mark.parametrize("steps", [1000, 200, 50])
@pytest.mark.parametrize("scaled", [True, False])
def test_beta_products_and_their_scaling(name, steps, scaled):
    chosen = choices.build("schedules", name, BETAS | {"steps": steps, "scaled": scaled})
    product = 1.0
    for i in range(steps):
        product *= 1 - beta_of(name, i / (steps - 1)) * (1000 / steps if scaled else 1)
        assert chosen.alpha(torch.tensor((i + 1) / steps)).item() ** 2 == pytest.approx(product, rel=1e-10)
    assert (product < 1.5e-3) == (scaled or steps == 1000)


def test_the_unscaled_chain_of_the_tutorial_is_a_wrong_start():
    """T = 200 to β = 0.02 leaves ᾱ = 0.13 (linear) and 0.24 (quadratic)."""
    for name, left in (("linear", 0.13), ("quadratic", 0.24)):
        short = choices.build("schedules", name, BETAS | {"steps": 200, "scaled": False})
        assert short.alpha(torch.ones(1)).item() ** 2 == pytest.approx(left, abs=0.006)
        assert f"terminal SNR is {left / (1 - left):.1f}"[:21] in (short.wrong_start() or "")
    assert schedule("linear").wrong_start() is None


@pytest.mark.parametrize("name", CHAINS)
def test_zero_terminal_snr(name):
    """Lin et al. 2024, Alg. 1: the last √ᾱ is 0, the first is kept, and the steps between are scaled alike."""
    before, after = schedule(name), choices.build("schedules", name, SCHEDULES[name] | {"zero_terminal_snr": True})
    assert after.alpha(torch.ones(1)) == 0
    assert after.terminal_snr() == 0
    a, b = before.alphas, after.alphas
    assert b[0].item() == pytest.approx(a[0].item(), rel=1e-12)
    torch.testing.assert_close(b, (a - a[-1]) / (a[0] - a[-1]) * a[0], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(after.t(after.half_log_snr(grid(after))), grid(after))
    for word in ("eps", "score"):
        with pytest.raises(InputError, match="starts without signal"):
            Denoiser(Constant(torch.zeros(1)), after, choices.build("targets", word, {}))


def test_beta_one_is_for_zero_terminal_snr_alone():
    """T = 20 scales the last β of the linear schedule to 1: no signal is left, which only the option allows."""
    with pytest.raises(InputError, match="the largest scaled beta is 1, but"):
        choices.build("schedules", "linear", BETAS | {"steps": 20})
    chain = choices.build("schedules", "linear", BETAS | {"steps": 20, "zero_terminal_snr": True})
    assert chain.terminal_snr() == 0
    assert chain.alphas[-2] > 0
    with pytest.raises(InputError, match="the largest scaled beta is 2"):
        choices.build("schedules", "linear", BETAS | {"steps": 10, "zero_terminal_snr": True})
    with pytest.raises(InputError, match="zero_terminal_snr needs a chain of at least 2 steps"):
        choices.build("schedules", "cosine", {"steps": 1, "zero_terminal_snr": True, "s": 0.008, "beta_max": 0.9})


@pytest.mark.parametrize("name", SCHEDULES)
def test_terminal_snr_and_the_start(name):
    chosen = schedule(name)
    one = torch.ones(1)
    assert chosen.terminal_snr() == pytest.approx((chosen.alpha(one) / chosen.sigma(one)).item() ** 2, rel=1e-9)
    assert chosen.wrong_start() is None


@pytest.mark.parametrize("T", [200, 1000, 5000])
def test_the_chain_tends_to_the_vp_sde(T):
    """β_i = β(i/T) / T: the discrete ᾱ differs from exp(−∫β) by O(1/T)."""
    sde = choices.build("schedules", "vp", {"beta_min": 0.1, "beta_max": 20.0})
    chain = choices.build("schedules", "linear", BETAS | {"steps": T})
    t = torch.linspace(0.1, 0.6, 6, dtype=torch.float64)
    t = chain.snap(t)
    error = (chain.alpha(t).log() - sde.alpha(t).log()).abs().max().item()
    assert error < 20 / T
    assert error > 0.1 / T


def test_karras_levels():
    chosen = choices.build("schedules", "edm", SCHEDULES["edm"] | {"steps": 10})
    for i in range(10):
        sigma = (0.002 ** (1 / 7) + i / 9 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
        assert chosen.sigma(torch.tensor((i + 1) / 10)).item() == pytest.approx(sigma)
    assert chosen.alpha(torch.rand(5)).tolist() == [1.0] * 5


def test_cosine_is_the_papers():
    chosen = schedule("cosine")

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    for i in (1, 10, 500, 990):
        assert chosen.alpha(torch.tensor(i / 1000)).item() ** 2 == pytest.approx(f(i / 1000) / f(0), rel=1e-9)


def test_flow_is_the_straight_path():
    t = torch.rand(9, dtype=torch.float64)
    torch.testing.assert_close(schedule("flow").alpha(t) + schedule("flow").sigma(t), torch.ones_like(t))
    assert schedule("flow").alpha(torch.ones(1)) == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_half_log_snr_decreases_and_inverts(name):
    chosen = schedule(name)
    t = grid(chosen)
    level = chosen.half_log_snr(t)
    assert (level.diff() < 0).all()
    torch.testing.assert_close(level, (chosen.alpha(t) / chosen.sigma(t)).log())
    torch.testing.assert_close(chosen.t(level), t, rtol=0, atol=1e-12)


def test_chain_times_snap_up_to_their_points():
    chosen = schedule("linear")
    points = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(chosen.snap(points), points)
    torch.testing.assert_close(chosen.snap(points.float()), points)
    torch.testing.assert_close(chosen.snap(points - 0.0005), points)
    assert chosen.snap(torch.tensor(1e-9)).item() == 1e-3


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("word", TARGETS)
def test_targets_round_trip(name, word):
    chosen, target = schedule(name), choices.build("targets", word, TARGETS[word])
    t = grid(chosen)[:, None]
    alpha, sigma = chosen.alpha(t), chosen.sigma(t)
    x0, eps = torch.randn(2, len(t), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t = alpha * x0 + sigma * eps
    f = prediction(target, x0, eps, alpha, sigma)
    torch.testing.assert_close(x0_from(target, f, x_t, alpha, sigma), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(eps_from(target, f, x_t, alpha, sigma), eps, rtol=1e-9, atol=1e-9)
    # ‖ΔF‖² = c² ‖Δx0‖² with eps tied to x0 by x_t
    moved = x0 + 0.1
    f_moved = prediction(target, moved, (x_t - alpha * moved) / sigma, alpha, sigma)
    torch.testing.assert_close((f_moved - f) ** 2, x0_error_scale(target, alpha, sigma) * 0.01 * torch.ones_like(f), rtol=1e-5, atol=1e-12)


def test_targets_are_the_papers():
    x0, eps, alpha, sigma = torch.randn(4, 7, dtype=torch.float64)
    wanted = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}
    for word, value in wanted.items():
        torch.testing.assert_close(prediction(choices.build("targets", word, {}), x0, eps, alpha, sigma), value)
    # the score of N(alpha x0, sigma²) at x_t, by differentiation
    x_t = (alpha * x0 + sigma * eps).requires_grad_()
    (score,) = torch.autograd.grad((-((x_t - alpha * x0) ** 2) / (2 * sigma**2)).sum(), x_t)
    torch.testing.assert_close(prediction(choices.build("targets", "score", {}), x0, eps, alpha, sigma), score)


def test_edm_preconditioning_is_the_papers():
    """Karras et al. 2022, Table 1: D = c_skip x + c_out F, where F has unit variance for data of deviation σ_data."""
    target, data = choices.build("targets", "edm", {"sigma_data": 0.5}), 0.5
    sigma = torch.logspace(-3, 2, 30, dtype=torch.float64)[:, None]
    f, x = torch.randn(2, 30, 4, dtype=torch.float64)
    c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2).sqrt()
    torch.testing.assert_close(x0_from(target, f, x, torch.ones_like(sigma), sigma), c_skip * x + c_out * f)
    a, b = target(torch.ones_like(sigma), sigma)
    torch.testing.assert_close(a**2 * data**2 + b**2, torch.ones_like(sigma))


class Constant(torch.nn.Module):
    """A network that ignores its input."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.value.expand_as(x)


@pytest.mark.parametrize("word", ["flow", "v", "x0", "edm"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_are_on_the_error_of_x0(word, weighting):
    chosen, target = schedule("flow"), choices.build("targets", word, TARGETS[word])
    denoiser = Denoiser(Constant(torch.full((1,), 0.3)), chosen, target)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 64, 3, generator=generator)
    t = torch.linspace(0.05, 0.95, 64)
    loss = diffusion_loss(denoiser, torch.square, choices.build("weightings", weighting, WEIGHTINGS[weighting]), x0, eps, t)
    alpha, sigma = chosen.alpha(t)[:, None], chosen.sigma(t)[:, None]
    x_t = (alpha * x0 + sigma * eps).double()
    error = (denoiser.x0(x_t, t) - x0).square().mean(1)
    snr = ((alpha / sigma) ** 2)[:, 0]
    level = snr**-0.5
    edm = (level**2 + 0.5**2) / (level * 0.5) ** 2
    weight = {"uniform": x0_error_scale(target, alpha, sigma)[:, 0], "snr": snr, "min_snr": snr.clamp(max=5), "edm": edm}[weighting]
    torch.testing.assert_close(loss.double(), weight * error, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_uniform_loss_is_the_mean_penalty_of_the_targets_error(name):
    denoiser = Denoiser(Constant(torch.zeros(1)), schedule("linear"), choices.build("targets", "eps", {}))
    x0, eps = torch.randn(2, 8, 3)
    loss = diffusion_loss(denoiser, choices.build("losses", name, LOSSES[name]), choices.build("weightings", "uniform", {}), x0, eps, torch.rand(8))
    size = eps.abs()
    penalty = {"l1": size, "l2": size**2, "huber": torch.where(size < 0.5, size**2 / 2, 0.5 * (size - 0.25))}[name]
    torch.testing.assert_close(loss, penalty.mean(1))


def test_noise_cannot_be_the_target_without_signal():
    with pytest.raises(InputError, match="choose the target x0, v, flow or edm"):
        Denoiser(Constant(torch.zeros(1)), schedule("flow"), choices.build("targets", "eps", {}))


@pytest.mark.parametrize("name", TIMES)
def test_training_times(name):
    chosen = schedule("edm")
    t = choices.build("times", name, TIMES[name])(chosen, 100_000, torch.Generator().manual_seed(0)).double()
    assert t.min() > 0
    assert t.max() <= 1
    if name == "uniform":
        assert t.mean().item() == pytest.approx(0.5, abs=0.005)
        assert t.var().item() == pytest.approx(1 / 12, rel=0.02)
    elif name == "log_normal":
        log_sigma = chosen.sigma(t).log()
        assert log_sigma.mean().item() == pytest.approx(-1.2, abs=0.02)
        assert log_sigma.std().item() == pytest.approx(1.2, rel=0.01)
    else:
        assert t.logit().mean().item() == pytest.approx(-0.5, abs=0.01)
        assert t.logit().std().item() == pytest.approx(0.8, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "name", "options", "words"),
    [
        ("schedules", "nosuch", {}, "known are cosine, edm, flow, linear"),
        ("schedules", "../errors", {}, "unknown name"),
        ("schedules", "linear", BETAS | {"steps": 10}, "the largest scaled beta is 2"),
        ("schedules", "linear", BETAS | {"steps": 0}, "greater than or equal to 1"),
        ("targets", "eps", {"x": 1}, "unknown parameter"),
        ("spacings", "karras", {"sigma_min": 2.0, "sigma_max": 1.0, "rho": 7.0}, "must be below sigma_max"),
    ],
)
def test_bad_choices_are_refused(kind, name, options, words):
    with pytest.raises(InputError) as caught:
        choices.build(kind, name, options)
    assert words in str(caught.value)
