"""The denoiser: one look-up of the noise level for one denoising, and what it refuses."""

from functools import partial

import pytest
import torch

from ldm.diffusion import Denoiser, DiffusionLoss, Schedule, penalties, predictions, schedules, weightings
from ldm.errors import InputError
from ldm.sampling import Guided


class Counting(Schedule):
    """A schedule that counts how often it is asked."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.length = schedule, schedule.length
        self.asked = {"alpha_t": 0, "sigma_t": 0, "time_of": 0}

    def alpha_t(self, t):
        self.asked["alpha_t"] += 1
        return self.schedule.alpha_t(t)

    def sigma_t(self, t):
        self.asked["sigma_t"] += 1
        return self.schedule.sigma_t(t)

    def time_of(self, half_log_snr):
        self.asked["time_of"] += 1
        return self.schedule.time_of(half_log_snr)

    def snap(self, t):
        return self.schedule.snap(t)

    def count(self, function) -> dict[str, int]:
        """The questions that a function asks."""
        self.asked = dict.fromkeys(self.asked, 0)
        function()
        return self.asked


@pytest.mark.parametrize("name", sorted(schedules.functions))
def test_one_denoising_looks_its_level_up_once(name):
    schedule = Counting(schedules.build(name))
    main, guide = (Denoiser(lambda x, t: 0.5 * x, schedule, predictions.build("v")) for _ in range(2))
    x, level = torch.randn(3, 1, 2, 2), schedule.at(torch.tensor(0.5, dtype=torch.float64))
    sigma = level.sigma_t / level.alpha_t
    assert schedule.count(lambda: main(x, sigma)) == {"alpha_t": 1, "sigma_t": 1, "time_of": 1}
    for weight in (1.0, 2.0):
        guided = Guided(main, guide, weight=weight, sigma_min=0.0, sigma_max=1000.0)
        assert schedule.count(partial(guided, x, sigma)) == {"alpha_t": 1, "sigma_t": 1, "time_of": 1}


@pytest.mark.parametrize("name", sorted(schedules.functions))
def test_one_loss_looks_its_levels_up_once(name):
    schedule = Counting(schedules.build(name))
    denoiser = Denoiser(lambda x, t: 0.5 * x, schedule, predictions.build("v"))
    loss = DiffusionLoss(penalties.build("l2"), weightings.build("snr"))
    x0, eps, t = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2), torch.rand(3).clamp(0.1, 0.9)
    assert schedule.count(lambda: loss(denoiser, x0, eps, t)) == {"alpha_t": 1, "sigma_t": 1, "time_of": 0}


@pytest.mark.parametrize("name", sorted(schedules.functions))
def test_the_network_sees_unit_variance_the_time_and_the_labels(name):
    """Its output is turned into x0 at the level of that time."""
    schedule, seen = schedules.build(name), []

    def network(x, t, *labels):
        seen.append((x, t, labels))
        return torch.full_like(x, 0.25)

    denoiser = Denoiser(network, schedule, predictions.build("x0"))
    level = schedule.at(torch.tensor(0.5, dtype=torch.float64))
    x, labels = torch.randn(3, 1, 2, 2, dtype=torch.float64), torch.tensor([2, 0, 1])
    denoised = denoiser(x, level.sigma_t / level.alpha_t, labels)
    (scaled, t, condition), *others = seen
    assert not others
    assert scaled.dtype == t.dtype == torch.float32
    unit = (level.alpha_t**2 + level.sigma_t**2).sqrt()
    torch.testing.assert_close(scaled, (level.alpha_t * x / unit).float())
    torch.testing.assert_close(t, level.t.float().expand(3))
    assert [given.tolist() for given in condition] == [[2, 0, 1]]
    torch.testing.assert_close(denoised, torch.full_like(x, 0.25))
    denoiser(x, level.sigma_t / level.alpha_t)
    assert seen[1][2] == ()


def test_levels_that_are_none_are_refused():
    schedule = schedules.build("linear")
    denoiser = Denoiser(lambda x, t: x, schedule, predictions.build("x0"))
    x = torch.randn(2, 1, dtype=torch.float64)
    for sigma, words in ((0.0, "must be above 0"), (-1.0, "must be above 0"), (0.12345, "no noise level 0.12345")):
        with pytest.raises(InputError, match=words):
            denoiser(x, torch.tensor(sigma, dtype=torch.float64))


def test_a_network_of_classes_is_told_them():
    denoiser = Denoiser(lambda x, t: x, schedules.build("linear"), predictions.build("x0"), class_sizes=(5, 7))
    with pytest.raises(InputError, match="labels None: this network takes the class"):
        denoiser.predict(torch.randn(2, 1), denoiser.schedule.at(torch.rand(2)))


@pytest.mark.parametrize("word", ["eps", "score"])
def test_noise_cannot_be_predicted_without_signal(word):
    with pytest.raises(InputError, match=r"choose .*x0, v, flow or edm"):
        Denoiser(torch.nn.Identity(), schedules.build("rectified_flow"), predictions.build(word))
