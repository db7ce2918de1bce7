"""What every noise schedule promises, and the formulas of the straight path."""

import pytest
import torch

from ldm.diffusion import schedules


@pytest.mark.parametrize("name", sorted(schedules.functions))
def test_half_log_snr_decreases_and_inverts(name):
    schedule = schedules.build(name)
    t = schedule.snap(torch.linspace(0.005, 0.995, 200, dtype=torch.float64)).unique()
    half_log_snr = schedule.half_log_snr(t)
    assert (half_log_snr.diff() < 0).all()
    torch.testing.assert_close(half_log_snr, (schedule.alpha_t(t) / schedule.sigma_t(t)).log())
    torch.testing.assert_close(schedule.time_of(half_log_snr), t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(schedules.functions))
def test_terminal_snr_and_the_start(name):
    schedule = schedules.build(name)
    one = torch.ones(1)
    snr = (schedule.alpha_t(one) / schedule.sigma_t(one)).item() ** 2
    assert schedule.terminal_snr() == pytest.approx(snr, rel=1e-9)
    assert schedule.wrong_start() is None


@pytest.mark.parametrize("name", sorted(schedules.functions))
def test_a_level_is_the_same_by_its_time_and_by_its_sigma(name):
    schedule = schedules.build(name)
    by_time = schedule.at(torch.tensor(0.4321, dtype=torch.float64))
    assert by_time.t == schedule.snap(torch.tensor(0.4321, dtype=torch.float64))
    assert by_time.alpha_t == schedule.alpha_t(by_time.t)
    assert by_time.sigma_t == schedule.sigma_t(by_time.t)
    by_sigma = schedule.at_sigma(by_time.sigma_t / by_time.alpha_t)
    torch.testing.assert_close(torch.stack(by_sigma), torch.stack(by_time), rtol=1e-12, atol=1e-12)
    for value, expanded in zip(by_time, by_time.expand(torch.zeros(3)), strict=True):
        assert expanded.tolist() == [value.item()] * 3


@pytest.mark.parametrize("name", sorted(schedules.functions))
def test_everything_is_float64_and_of_the_shape_of_t(name):
    schedule = schedules.build(name)
    t = torch.rand(4, 2).clamp(min=0.01)
    for value in (schedule.alpha_t(t), schedule.sigma_t(t), schedule.time_of(schedule.half_log_snr(t))):
        assert value.dtype == torch.float64
        assert value.shape == (4, 2)


def test_rectified_flow_is_the_straight_path():
    schedule = schedules.build("rectified_flow")
    t = torch.rand(9, dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma_t(t), t)
    torch.testing.assert_close(schedule.alpha_t(t) + schedule.sigma_t(t), torch.ones_like(t))
    assert schedule.alpha_t(torch.ones(1)) == 0
