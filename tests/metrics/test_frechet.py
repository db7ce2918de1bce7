"""The Fréchet distance against closed forms and other implementations."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import _compute_fid

from ldm.errors import InputError
from ldm.metrics.frechet import Moments, frechet_distance, moments


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(2, 40, 40))
    return rng.normal(size=(500, 40)) @ mix[0], rng.normal(size=(700, 40)) @ mix[1] + 0.3


def test_identical_sets_are_at_zero(features):
    a = moments(features[0])
    assert abs(frechet_distance(a, a)) < 1e-9 * np.trace(a.covariance)


def test_equal_covariances_leave_the_means(features):
    a = moments(features[0])
    b = moments(features[0] + 2.0)
    assert frechet_distance(a, b) == pytest.approx(40 * 4.0, rel=1e-9)


def test_commuting_gaussians():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    s, t = rng.uniform(0.1, 3, size=(2, 8))
    a = Moments(np.zeros(8), 99 * basis @ np.diag(s**2) @ basis.T, 100)
    b = Moments(np.full(8, 0.5), 99 * basis @ np.diag(t**2) @ basis.T, 100)
    assert frechet_distance(a, b) == pytest.approx(8 * 0.25 + ((s - t) ** 2).sum(), rel=1e-10)


def test_agrees_with_sqrtm_and_torchmetrics(features):
    a, b = map(moments, features)
    ours = frechet_distance(a, b)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    theirs = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert ours == pytest.approx(theirs, rel=1e-8)
    args = (torch.from_numpy(x) for x in (a.mean, a.covariance, b.mean, b.covariance))
    assert ours == pytest.approx(_compute_fid(*args).item(), rel=1e-8)


def test_symmetric_and_fine_with_dead_features(features):
    dead = [np.concatenate([x, np.zeros((len(x), 3))], 1) for x in features]
    a, b = map(moments, dead)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(*map(moments, features)), rel=1e-9)


def test_moments_are_unbiased(features):
    fitted = moments(features[0].astype(np.float32))
    expected = np.cov(features[0].astype(np.float32).astype(float), rowvar=False)
    np.testing.assert_allclose(fitted.covariance, expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((40, 40)), "40 samples cannot give the covariance of 40 features"),
        (np.full((100, 4), np.nan), "400 of 400 values are NaN"),
        (np.full((9000, 4), 0.1, np.float32), "all 9000 samples are equal"),
        (np.zeros(5), "not (n, d)"),
    ],
)
def test_bad_features_are_refused(bad, words):
    with pytest.raises(InputError) as caught:
        moments(bad, "generated")
    assert words in str(caught.value)
    assert str(caught.value).startswith("generated")


def test_mismatched_widths_are_refused(features):
    with pytest.raises(InputError, match="widths 40 and 39"):
        frechet_distance(moments(features[0]), moments(features[1][:, 1:]))


def test_moments_in_batches_are_those_of_the_whole(features):
    """Chan's merge: any split gives the same moments, to rounding, even far from 0."""
    x = features[0] + 1e4
    whole = np.cov(x, rowvar=False)
    for sizes in ([500], [1, 499], [100] * 5, [7, 200, 293]):
        parts = np.split(x, np.cumsum(sizes)[:-1])
        fitted = moments(iter(parts))
        assert fitted.n == 500
        np.testing.assert_allclose(fitted.mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(fitted.covariance, whole, rtol=1e-7, atol=1e-7)
