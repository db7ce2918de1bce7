"""Discrete chains: their βs against the papers' formulas, and what they refuse."""

import math

import pytest
import torch

from ldm.diffusion import Denoiser, predictions, schedules
from ldm.errors import InputError

BETAS = {  # β at u in [0, 1], as the papers state it for T = 1000, from 0.0001 to 0.02
    "linear": lambda u: 1e-4 + (0.02 - 1e-4) * u,
    "quadratic": lambda u: (1e-4**0.5 + (0.02**0.5 - 1e-4**0.5) * u) ** 2,
    "sigmoid": lambda u: 1e-4 + (0.02 - 1e-4) / (1 + math.exp(6 - 12 * u)),
}
CHAINS = [*BETAS, "cosine"]


@pytest.mark.parametrize("name", [*CHAINS, "vp"])
def test_variance_preserving(name):
    schedule = schedules.build(name)
    t = schedule.snap(torch.linspace(0.005, 0.995, 200, dtype=torch.float64)).unique()
    variance = schedule.alpha_t(t) ** 2 + schedule.sigma_t(t) ** 2
    torch.testing.assert_close(variance, torch.ones_like(t), rtol=0, atol=1e-14)
    assert schedule.alpha_t(torch.ones(1)).item() ** 2 < 1e-3  # N(0, I) is the right start


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("length", [1000, 200, 50])
@pytest.mark.parametrize("scaled", [True, False])
def test_beta_products_and_their_scaling(name, length, scaled):
    chain = schedules.build(name, {"length": length, "scaled": scaled})
    product = 1.0
    for i in range(length):
        product *= 1 - BETAS[name](i / (length - 1)) * (1000 / length if scaled else 1)
        assert chain.alpha_t(torch.tensor((i + 1) / length)).item() ** 2 == pytest.approx(product, rel=1e-10)
    assert (product < 1.5e-3) == (scaled or length == 1000)


def test_the_unscaled_chain_of_the_tutorial_is_a_wrong_start():
    """T = 200 to β = 0.02 leaves ᾱ = 0.13 (linear) and 0.24 (quadratic)."""
    for name, left in (("linear", 0.13), ("quadratic", 0.24)):
        short = schedules.build(name, {"length": 200, "scaled": False})
        assert short.alpha_t(torch.ones(1)).item() ** 2 == pytest.approx(left, abs=0.006)
        assert f"terminal SNR is {left / (1 - left):.1f}"[:21] in (short.wrong_start() or "")
    assert schedules.build("linear").wrong_start() is None


@pytest.mark.parametrize("name", CHAINS)
def test_zero_terminal_snr(name):
    """Lin et al. 2024, Alg. 1: the last √ᾱ is 0, the first is kept, and the steps between are scaled alike."""
    before, after = schedules.build(name), schedules.build(name, {"zero_terminal_snr": True})
    assert after.alpha_t(torch.ones(1)) == 0
    assert after.terminal_snr() == 0
    a, b = before.alphas, after.alphas
    assert b[0].item() == pytest.approx(a[0].item(), rel=1e-12)
    torch.testing.assert_close(b, (a - a[-1]) / (a[0] - a[-1]) * a[0], rtol=1e-12, atol=1e-15)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(after.time_of(after.half_log_snr(t)), t)
    for word in ("eps", "score"):
        with pytest.raises(InputError, match=r"choose .*x0, v, flow or edm"):
            Denoiser(torch.nn.Identity(), after, predictions.build(word))


def test_beta_one_is_for_zero_terminal_snr_alone():
    """T = 20 scales the last β of the linear schedule to 1: no signal is left, which only the option allows."""
    with pytest.raises(InputError, match=r"20 steps .*beta\D* 1,.* \(0, 1\)"):
        schedules.build("linear", {"length": 20})
    chain = schedules.build("linear", {"length": 20, "zero_terminal_snr": True})
    assert chain.terminal_snr() == 0
    assert chain.alphas[-2] > 0
    with pytest.raises(InputError, match=r"10 steps .*beta\D* 2,.* \(0, 1\)"):
        schedules.build("linear", {"length": 10, "zero_terminal_snr": True})
    with pytest.raises(InputError, match="zero_terminal_snr needs a chain of at least 2 steps"):
        schedules.build("cosine", {"length": 1, "zero_terminal_snr": True, "beta_max": 0.9})
    with pytest.raises(InputError, match="zero_terminal_snr needs a chain of at least 2 steps"):
        schedules.build("linear", {"length": 1, "zero_terminal_snr": True})


@pytest.mark.parametrize("length", [200, 1000, 5000])
def test_the_chain_tends_to_the_vp_sde(length):
    """β_i = β(i/T) / T: the discrete ᾱ differs from exp(−∫β) by O(1/T)."""
    sde, chain = schedules.build("vp"), schedules.build("linear", {"length": length})
    t = chain.snap(torch.linspace(0.1, 0.6, 6, dtype=torch.float64))
    error = (chain.alpha_t(t).log() - sde.alpha_t(t).log()).abs().max().item()
    assert error < 20 / length
    assert error > 0.1 / length


def test_karras_levels_of_a_chain():
    chain = schedules.build("karras", {"length": 10})
    assert chain.length == 10
    for i in range(10):
        sigma = (0.002 ** (1 / 7) + i / 9 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
        assert chain.sigma_t(torch.tensor((i + 1) / 10)).item() == pytest.approx(sigma)
    assert chain.alpha_t(torch.rand(5)).tolist() == [1.0] * 5


def test_cosine_is_the_papers():
    schedule = schedules.build("cosine")

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    for i in (1, 10, 500, 990):
        alpha_t = schedule.alpha_t(torch.tensor(i / 1000)).item()
        assert alpha_t**2 == pytest.approx(f(i / 1000) / f(0), rel=1e-9)


def test_times_snap_up_to_the_points_of_the_chain():
    schedule = schedules.build("linear")
    points = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(schedule.snap(points), points)
    torch.testing.assert_close(schedule.snap(points.float()), points)
    torch.testing.assert_close(schedule.snap(points - 0.0005), points)
    assert schedule.snap(torch.tensor(1e-9)).item() == 1e-3


def test_a_chain_has_no_other_levels_than_its_own():
    schedule = schedules.build("linear")
    sigmas = schedule.sigmas / schedule.alphas
    for i in (0, 500, 999):
        assert schedule.at_sigma(sigmas[i]).t.item() == (i + 1) / 1000
    between = (sigmas[500] * sigmas[501]).sqrt()
    with pytest.raises(InputError, match=f"the chain has no noise level {between:g}"):
        schedule.at_sigma(between)


@pytest.mark.parametrize(
    ("options", "words"), [({"length": 10}, r"beta\D* 2,.* \(0, 1\)"), ({"length": 0}, "greater than or equal to 1")]
)
def test_bad_lengths_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        schedules.build("linear", options)
