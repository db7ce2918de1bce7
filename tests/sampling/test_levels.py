"""Where the steps lie: spacings against their formulas, and levels that are refused."""

import math

import pytest
import torch

from ldm.diffusion import schedules
from ldm.errors import InputError
from ldm.sampling import spacings, wrong_start
from ldm.sampling.levels import check_sigmas

OPTIONS = {  # so that every schedule has all the levels
    "trailing": {},
    "uniform": {"t_min": 0.005},
    "karras": {"sigma_min": 0.02, "sigma_max": 30.0},
    "log_snr": {"sigma_min": 0.05, "sigma_max": 20.0},
}


@pytest.mark.parametrize("path", sorted(schedules.functions))
@pytest.mark.parametrize("spacing", sorted(spacings.functions))
def test_spacings_decrease_to_zero(path, spacing):
    schedule = schedules.build(path)
    sigmas = spacings.build(spacing, OPTIONS[spacing])(schedule, 20)
    assert len(sigmas) == 21
    assert sigmas.dtype == torch.float64
    assert check_sigmas(sigmas) is sigmas
    if spacing in ("trailing", "uniform"):
        end = 0.05 if spacing == "trailing" else 0.005
        times = schedule.snap(torch.linspace(1, end, 20, dtype=torch.float64))
        torch.testing.assert_close(schedule.time_of(-sigmas[:-1].log()), times)
    else:
        assert sigmas[0].item() == pytest.approx(OPTIONS[spacing]["sigma_max"], rel=0.03)


def test_karras_levels_are_the_papers():
    sigmas = spacings.build("karras")(schedules.build("rectified_flow"), 18)
    for i in range(18):
        sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert sigmas[i].item() == pytest.approx(sigma)


def test_log_snr_levels_fall_by_a_constant_factor():
    sigmas = spacings.build("log_snr")(schedules.build("rectified_flow"), 18)
    for i in range(18):
        assert sigmas[i].item() == pytest.approx(80 * (0.002 / 80) ** (i / 17))


@pytest.mark.parametrize(("ends", "words"), [((0.002, 100.0), "100 to 0.002"), ((0.0001, 80.0), "80 to 0.0001")])
@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_levels_beyond_the_schedule_are_refused(ends, words, spacing):
    """A network was never trained there."""
    chosen = spacings.build(spacing, {"sigma_min": ends[0], "sigma_max": ends[1]})
    with pytest.raises(InputError, match=f"noise levels {words} .*the schedule"):
        chosen(schedules.build("karras"), 10)


@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_the_ends_of_a_spacing_must_be_in_order(spacing):
    chosen = spacings.build(spacing, {"sigma_min": 2.0, "sigma_max": 1.0})
    with pytest.raises(InputError, match="sigma_min 2 must be below sigma_max 1"):
        chosen(schedules.build("karras"), 10)


@pytest.mark.parametrize("option", [{"rho": 0.001}, {"sigma_min": 5e-324}, {"sigma_max": 1e308}])
def test_levels_whose_powers_overflow_are_refused(option):
    (name,) = option
    with pytest.raises(InputError, match=rf"spacings\.karras\.{name}: "):
        spacings.build("karras", option)
    for rho in (1.0, 1000.0):
        widest = spacings.build("karras", {"sigma_min": 1e-6, "sigma_max": 1e6, "rho": rho})
        assert len(widest(schedules.build("rectified_flow"), 3)) == 4


def test_too_little_noise_is_a_wrong_start():
    assert wrong_start(torch.tensor([80.0, 1.0, 0.0])) is None
    assert wrong_start(torch.tensor([math.inf, 1.0, 0.0])) is None
    words = "sampling starts at σ̄ = 1, where the SNR is 1, above 0.001"
    assert words in (wrong_start(torch.tensor([1.0, 0.1, 0.0])) or "")


@pytest.mark.parametrize("spacing", sorted(spacings.functions))
def test_more_steps_than_the_chain_has_are_refused(spacing):
    chain, chosen = schedules.build("linear", {"length": 100}), spacings.build(spacing, OPTIONS[spacing])
    with pytest.raises(InputError, match="101 sampling steps are more than the chain's 100"):
        chosen(chain, 101)
    with pytest.raises(InputError, match="0 sampling steps are too few"):
        chosen(chain, 0)


@pytest.mark.parametrize(
    ("sigmas", "culprit"),
    [([3.0, 1.0, 2.0, 0.0], "1 → 2"), ([2.0, 2.0, 1.0, 1.0, 0.0], "2 → 2"), ([2.0, 1.0], "1"), ([0.0], "0")],
)
def test_bad_levels_are_refused(sigmas, culprit):
    with pytest.raises(InputError, match=f"must decrease .*do not: {culprit};"):
        check_sigmas(torch.tensor(sigmas))
