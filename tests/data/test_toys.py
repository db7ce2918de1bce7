"""The toys: their draws, densities and statistics, and the distances between sets of points."""

import math

import numpy as np
import pytest

from ldm.data.toys import energy_distance, sliced_wasserstein, toys

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", sorted(toys.functions))
def test_draws_are_seeded(name):
    toy = toys.build(name)
    a, b, c = (toy.draw(4000, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert a.shape == (4000, 1 if name == "gaussian_1d" else 2)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_parabola_distance_is_that_to_the_curve():
    x = np.array([[0.0, -0.3], [1.0, 1.0], [0.5, 0.25]])
    row = toys.build("parabola").score_samples(x)
    assert row["curve_distance_median"] == pytest.approx(0, abs=1e-9)
    assert row["curve_distance_p95"] == pytest.approx(0.9 * 0.3, rel=1e-3)


def test_mixture_statistics_notice_a_lost_mode():
    toy = toys.build("four_gaussians")
    x = toy.draw(4000, RNG)
    kept = x[(x > 0).any(1)]  # the mode (−1, −1) is gone
    row = toy.score_samples(kept)
    assert row["smallest_share"] == 0
    assert row["largest_share"] == pytest.approx(4 / 3, rel=0.1)
    assert row["mode_std_ratio"] == pytest.approx(1, rel=0.05)


def test_mixture_statistics_notice_a_shift():
    toy = toys.build("gaussian_1d")
    row = toy.score_samples(toy.draw(4000, RNG) + 0.005)  # half a deviation
    assert row["mode_offset"] == pytest.approx(0.5, abs=0.1)
    assert row["mode_std_ratio"] == pytest.approx(math.sqrt(1 + 0.25), rel=0.1)
    assert row["smallest_share"] == row["largest_share"] == 1


def test_sliced_wasserstein_of_a_shift():
    """A shift by v moves a projection by |cos| ‖v‖, whose mean in the plane is 2 ‖v‖ / π; on the line it is ‖v‖."""
    x = RNG.standard_normal((2000, 2))
    assert sliced_wasserstein(x, x + np.array([3.0, 4.0]), 4000, RNG) == pytest.approx(5 * 2 / math.pi, rel=0.03)
    assert sliced_wasserstein(x[:, :1], x[:, :1] - 2.0, 10, RNG) == pytest.approx(2)


def test_energy_distance_of_two_points_and_its_mean_of_none():
    """Far apart, 2 E‖X − Y‖ dominates; for equal distributions the unbiased estimate has mean 0."""
    x = np.zeros((5, 2))
    assert energy_distance(x, x + np.array([3.0, 4.0])) == pytest.approx(10)
    draws = [energy_distance(RNG.standard_normal((100, 2)), RNG.standard_normal((100, 2))) for _ in range(200)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / math.sqrt(200)
    assert min(draws) < 0 < max(draws)
