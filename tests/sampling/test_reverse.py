"""The reverse process: random streams, states from noise to data, and batches that never change a sample."""

import math

import pytest
import torch
from gaussian import MEAN, STD, exact_denoiser
from torch import nn

from ldm.diffusion import Denoiser, predictions, schedules
from ldm.errors import InputError
from ldm.sampling import (
    Guided,
    Streams,
    check_sampler,
    last_state,
    sample_batches,
    samplers,
    spacings,
    split_range,
    states,
)
from ldm.sampling.classes import classes_of, mistaken

SAMPLERS = sorted(samplers.functions)
SCHEDULES = sorted(schedules.functions)
OPTIONS = {  # so that every schedule has all the levels
    "trailing": {},
    "uniform": {"t_min": 0.005},
    "karras": {"sigma_min": 0.02, "sigma_max": 30.0},
    "log_snr": {"sigma_min": 0.05, "sigma_max": 20.0},
}


def sampler(name: str):
    return samplers.build(name, {"eta": 0.5} if name == "ddim" else {})


def reach_the_data(name: str, path: str, spacing: str) -> None:
    """From pure noise to N(MEAN, STD²), by the denoiser of a network that is exact."""
    schedule = schedules.build(path)
    sigmas = spacings.build(spacing, OPTIONS[spacing])(schedule, 80)
    *_, end = states(exact_denoiser(schedule), sampler(name), sigmas, Streams(0, range(60), (64,)))
    # with 80 steps the samplers of first order leave a bias; a wrong sampler leaves far more
    assert end.mean().item() == pytest.approx(MEAN, abs=0.06)
    assert end.std().item() == pytest.approx(STD, abs=0.07)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("path", SCHEDULES)
def test_every_sampler_on_every_schedule(name, path):
    # Euler–Maruyama renews the noise of a whole step, so its levels must not fall too fast
    reach_the_data(name, path, "karras" if name in ("euler_maruyama", "predictor_corrector") else "trailing")


@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("spacing", sorted(spacings.functions))
def test_every_spacing_on_every_schedule(path, spacing):
    reach_the_data("dpmpp_2m", path, spacing)


def test_heun_is_refused_where_a_level_is_far_from_the_next():
    """Its slope at the next level, (x̄ − D) / σ̄, enlarges what the denoiser errs by at the level before."""
    schedule = schedules.build("cosine")
    far, near = spacings.build("trailing")(schedule, 30), spacings.build("karras")(schedule, 10)
    for sigmas in (far, torch.tensor([math.inf, 90.0, 0.5, 0.0])):  # from 20,300 to 19; from 90 to 0.5
        with pytest.raises(InputError, match=r"heun makes errors \d+ times as large in its step from"):
            check_sampler(sampler("heun"), schedule, sigmas)
        check_sampler(sampler("dpmpp_2m"), schedule, sigmas)
    check_sampler(sampler("heun"), schedule, near)
    guided = Guided(one := exact_denoiser(schedule), one, weight=1.0, sigma_min=0.0, sigma_max=1.0)
    with pytest.raises(InputError, match="heun makes errors"):
        next(sample_batches(guided, sampler("heun"), far, [range(2)], seed=0))


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_from_noise_alone_gives_the_mean(name):
    schedule = schedules.build("rectified_flow")
    sigmas = spacings.build("trailing")(schedule, 1)
    *_, end = states(exact_denoiser(schedule), sampler(name), sigmas, Streams(0, range(4), (3,)))
    torch.testing.assert_close(end, torch.full_like(end, MEAN))


@pytest.mark.parametrize("path", ["rectified_flow", "linear", "karras"])
def test_states_go_from_the_noise_to_the_sample(path):
    """N + 1 of them, scaled by alpha_t: the first has the spread of noise at t = 1 over unit data."""
    schedule = schedules.build(path)
    sigmas = spacings.build("trailing")(schedule, 12)
    noise = Streams(0, range(50), (64,))
    every = list(states(exact_denoiser(schedule), sampler("euler"), sigmas, noise))
    assert len(every) == len(sigmas)
    start = schedule.at(torch.ones((), dtype=torch.float64))
    eps = Streams(0, range(50), (64,))()
    torch.testing.assert_close(every[0], (start.alpha_t**2 + start.sigma_t**2).sqrt() * eps)
    again = states(exact_denoiser(schedule), sampler("euler"), sigmas, Streams(0, range(50), (64,)))
    assert torch.equal(last_state(again), every[-1])


class OfClasses(nn.Module):
    """A network with random weights, whose output depends on x, t and the class."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.classes = nn.Conv2d(2, 2, 3, padding=1), nn.Embedding(3, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        shift = t[:, None] if labels is None else t[:, None] + self.classes(labels)
        return self.body(x).tanh() + shift[:, :, None, None]


def guided(*class_sizes: int) -> Guided:
    schedule, prediction = schedules.build("rectified_flow"), predictions.build("flow")
    main, guide = (Denoiser(OfClasses(seed), schedule, prediction, (2, 4, 4), class_sizes) for seed in (0, 1))
    return Guided(main, guide, weight=1.5, sigma_min=0.1, sigma_max=10.0)


def drawn(denoiser: Guided, name: str, *batches, seed: int = 5, **settings) -> list:
    sigmas = spacings.build("trailing")(denoiser.schedule, 6)
    with torch.inference_mode():
        return list(sample_batches(denoiser, sampler(name), sigmas, batches, seed=seed, **settings))


def test_samples_that_are_not_finite_are_refused():
    denoiser = guided()
    denoiser.weight = 1e300
    with pytest.raises(InputError, match="samples became NaN or infinite; lower guidance"):
        drawn(denoiser, "dpmpp_2m", range(2))


def test_samples_have_numbers_of_63_bits():
    assert split_range(2**63 - 3, 3, 2) == [range(2**63 - 3, 2**63 - 1), range(2**63 - 1, 2**63)]
    with pytest.raises(InputError, match=r"3 samples from there on have numbers above 2\*\*63 - 1"):
        split_range(2**63 - 2, 3, 2)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("class_sizes", "redraw"), [((), True), ((5, 0, 15), False), ((5, 0, 15), True)])
def test_any_division_into_batches_gives_the_same_samples(name, class_sizes, redraw):
    denoiser = guided(*class_sizes)
    (whole,) = drawn(denoiser, name, range(12), redraw=redraw)
    assert whole.x.shape == (12, 2, 4, 4)
    assert whole.x.dtype == torch.float32
    assert len(whole.x.flatten(1).unique(dim=0)) == 12
    for division in ([range(7), range(7, 12)], [[i] for i in range(12)], [[11, 3], [0, 8, 5]]):
        batches = drawn(denoiser, name, *division, redraw=redraw)
        assert [len(batch.x) for batch in batches] == [len(indices) for indices in division]
        indices = [index for part in division for index in part]
        x = torch.cat([batch.x for batch in batches])
        torch.testing.assert_close(x, whole.x[indices], rtol=1e-4, atol=1e-5)
        if class_sizes:
            assert torch.equal(torch.cat([batch.labels for batch in batches]), whole.labels[indices])
        else:
            assert all(batch.labels is None for batch in batches)
    (other,) = drawn(denoiser, name, range(12), seed=6, redraw=redraw)
    assert not torch.isclose(other.x, whole.x).all()


def test_what_the_denoiser_takes_for_another_class_is_drawn_once_more():
    """From the noise that follows in its stream; all others stay as they are, and a shown one has its new states."""
    denoiser = guided(5, 0, 15)
    (before,) = drawn(denoiser, "euler", range(300), shown=300)
    (found,) = drawn(denoiser, "euler", range(300), redraw=True, shown=300)
    with torch.inference_mode():
        streams = Streams(5, range(300), denoiser.shape)
        streams()  # Euler's sampler draws noise once
        wrong, streams = mistaken(denoiser.main, before.x, before.labels, streams)
        sigmas = spacings.build("trailing")(denoiser.schedule, 6)
        again = last_state(states(denoiser, sampler("euler"), sigmas, streams, before.labels[wrong]))
    assert 5 < len(wrong) < 150
    expected = before.x.index_copy(0, wrong, again.float())
    torch.testing.assert_close(found.x, expected)
    assert torch.equal(found.labels, before.labels)
    assert torch.equal(found.trajectory[:, -1], found.x)
    same = (found.trajectory == before.trajectory).flatten(1).all(1)
    assert sorted((~same).nonzero()[:, 0].tolist()) == wrong.tolist()
    (few,) = drawn(denoiser, "euler", range(300), redraw=True, shown=int(wrong[2]) + 1)
    torch.testing.assert_close(few.trajectory, found.trajectory[: int(wrong[2]) + 1])


def test_labels_are_those_asked_for():
    """By quota where none is asked for; then only the class differs, not the noise."""
    denoiser = guided(5, 0, 15)
    (free,) = drawn(denoiser, "euler", range(40))
    assert torch.equal(free.labels, classes_of(range(40), [5, 0, 15], None, "cpu"))
    assert set(free.labels.tolist()) == {0, 2}
    asked = drawn(denoiser, "euler", range(15), range(15, 40), label=2)
    assert [batch.labels.tolist() for batch in asked] == [[2] * 15, [2] * 25]
    same = torch.isclose(torch.cat([batch.x for batch in asked]), free.x, rtol=1e-4, atol=1e-5).flatten(1).all(1)
    assert torch.equal(same, free.labels == 2)


@pytest.mark.parametrize("label", [1, 3, -1])
def test_a_class_that_was_not_trained_on_is_refused(label):
    with pytest.raises(InputError, match=f"label {label}: .*on 0, 2"):
        drawn(guided(5, 0, 15), "euler", range(2), label=label)
    with pytest.raises(InputError, match=f"label {label}: .*without labels"):
        drawn(guided(), "euler", range(2), label=label)


def test_the_states_of_the_first_samples_are_kept():
    first, second = drawn(guided(), "ddim", range(6), range(6, 9), shown=4)
    assert first.trajectory.shape == (4, 7, 2, 4, 4)  # (shown, steps + 1, C, h, w)
    assert first.trajectory.dtype == torch.float32
    assert torch.equal(first.trajectory[:, -1], first.x[:4])
    torch.testing.assert_close(first.trajectory[:, 0], Streams(5, range(4), (2, 4, 4))().float())
    assert second.trajectory is None
    (without,) = drawn(guided(), "ddim", range(6))
    assert without.trajectory is None
