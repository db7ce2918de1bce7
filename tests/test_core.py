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

SCHEDULES = {
    "flow": {},
    "linear": {"steps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"steps": 1000, "s": 0.008, "beta_max": 0.999},
}
TIMES = {"uniform": {}, "logit_normal": {"mean": -0.5, "std": 0.8}}
WEIGHTINGS = {"plain": {}, "snr": {}, "min_snr": {"gamma": 5.0}}


def schedule(name: str) -> Schedule:
    return choices.build("schedules", name, SCHEDULES[name])


def grid(chosen: Schedule, n: int = 200) -> torch.Tensor:
    """Times in (0, 1) that the schedule has."""
    return chosen.snap(torch.linspace(0.005, 0.995, n, dtype=torch.float64)).unique()


def test_every_choice_is_tested():
    assert choices.known("schedules") == sorted(SCHEDULES)
    assert choices.known("times") == sorted(TIMES)
    assert choices.known("weightings") == sorted(WEIGHTINGS)
    assert choices.known("targets") == ["eps", "flow", "v", "x0"]


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_variance_preserving(name):
    chosen = schedule(name)
    t = grid(chosen)
    torch.testing.assert_close(chosen.alpha(t) ** 2 + chosen.sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-14)
    assert chosen.alpha(torch.ones(1)).item() ** 2 < 1e-4  # N(0, I) is the right start


@pytest.mark.parametrize("steps", [1000, 200, 50])
def test_linear_product_and_its_scaling(steps):
    chosen = choices.build("schedules", "linear", SCHEDULES["linear"] | {"steps": steps})
    product = 1.0
    for i in range(steps):
        beta = (1e-4 + (0.02 - 1e-4) * i / (steps - 1)) * 1000 / steps
        product *= 1 - beta
        t = torch.tensor((i + 1) / steps)
        assert chosen.alpha(t).item() ** 2 == pytest.approx(product, rel=1e-10)
    assert product < 1e-4


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
@pytest.mark.parametrize("word", ["eps", "flow", "v", "x0"])
def test_targets_round_trip(name, word):
    chosen, target = schedule(name), choices.build("targets", word, {})
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
    torch.testing.assert_close((f_moved - f) ** 2, x0_error_scale(target, alpha, sigma) * 0.01 * torch.ones_like(f), rtol=1e-6, atol=1e-12)


def test_targets_are_the_papers():
    x0, eps, alpha, sigma = torch.randn(4, 7, dtype=torch.float64)
    wanted = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}
    for word, value in wanted.items():
        torch.testing.assert_close(prediction(choices.build("targets", word, {}), x0, eps, alpha, sigma), value)


class Constant(torch.nn.Module):
    """A network that ignores its input."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.value.expand_as(x)


@pytest.mark.parametrize("word", ["flow", "v", "x0"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_are_on_the_error_of_x0(word, weighting):
    chosen, target = schedule("flow"), choices.build("targets", word, {})
    denoiser = Denoiser(Constant(torch.full((1,), 0.3)), chosen, target)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 64, 3, generator=generator)
    t = torch.linspace(0.05, 0.95, 64)
    loss = diffusion_loss(denoiser, choices.build("weightings", weighting, WEIGHTINGS[weighting]), x0, eps, t)
    alpha, sigma = chosen.alpha(t)[:, None], chosen.sigma(t)[:, None]
    x_t = (alpha * x0 + sigma * eps).double()
    error = (denoiser.x0(x_t, t) - x0).square().mean(1)
    snr = ((alpha / sigma) ** 2)[:, 0]
    weight = {"plain": x0_error_scale(target, alpha, sigma)[:, 0], "snr": snr, "min_snr": snr.clamp(max=5)}[weighting]
    torch.testing.assert_close(loss.double(), weight * error, rtol=1e-4, atol=1e-5)


def test_plain_loss_is_the_mean_square_of_the_targets_error():
    denoiser = Denoiser(Constant(torch.zeros(1)), schedule("linear"), choices.build("targets", "eps", {}))
    x0, eps = torch.randn(2, 8, 3)
    loss = diffusion_loss(denoiser, choices.build("weightings", "plain", {}), x0, eps, torch.rand(8))
    torch.testing.assert_close(loss, eps.square().mean(1))


def test_noise_cannot_be_the_target_without_signal():
    with pytest.raises(InputError, match="choose the target x0, v or flow"):
        Denoiser(Constant(torch.zeros(1)), schedule("flow"), choices.build("targets", "eps", {}))


@pytest.mark.parametrize("name", TIMES)
def test_training_times(name):
    t = choices.build("times", name, TIMES[name])(100_000, torch.Generator().manual_seed(0)).double()
    assert t.min() > 0
    assert t.max() <= 1
    if name == "uniform":
        assert t.mean().item() == pytest.approx(0.5, abs=0.005)
        assert t.var().item() == pytest.approx(1 / 12, rel=0.02)
    else:
        assert t.logit().mean().item() == pytest.approx(-0.5, abs=0.01)
        assert t.logit().std().item() == pytest.approx(0.8, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "name", "options", "words"),
    [
        ("schedules", "nosuch", {}, "known are cosine, flow, linear"),
        ("schedules", "../errors", {}, "unknown name"),
        ("schedules", "linear", {"steps": 10, "beta_start": 1e-4, "beta_end": 0.02}, "the largest scaled beta is 2"),
        ("schedules", "linear", {"steps": 0, "beta_start": 1e-4, "beta_end": 0.02}, "greater than or equal to 1"),
        ("targets", "eps", {"x": 1}, "unknown parameter"),
        ("spacings", "karras", {"sigma_min": 2.0, "sigma_max": 1.0, "rho": 7.0}, "must be below sigma_max"),
    ],
)
def test_bad_choices_are_refused(kind, name, options, words):
    with pytest.raises(InputError) as caught:
        choices.build(kind, name, options)
    assert words in str(caught.value)
