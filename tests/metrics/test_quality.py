"""The measures beside the Fréchet distance, by their definitions; what they see in digits is in test_planted_faults."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from ldm.errors import InputError
from ldm.metrics.quality import Manifold, label_distance, precision_recall, subset


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_precision_recall_by_their_definitions():
    real, fake = rng().normal(size=(40, 2)), rng().normal(1.0, 0.5, size=(30, 2))
    k = 3
    a, b = Manifold.fit(real, k), Manifold.fit(fake, k)
    np.testing.assert_allclose(a.radii, np.sort(cdist(real, real), 1)[:, k])
    inside = cdist(fake, real) <= a.radii
    found = precision_recall(a, b)
    assert found["precision"] == pytest.approx(inside.any(1).mean())
    assert found["density"] == pytest.approx(inside.sum() / (k * 30))
    assert found["coverage"] == pytest.approx(inside.any(0).mean())
    assert found["recall"] == pytest.approx((cdist(real, fake) <= b.radii).any(1).mean())
    with pytest.raises(InputError, match="have no 3-th neighbour"):
        Manifold.fit(real[:3], 3)


def test_label_distance_is_the_total_variation():
    predicted, real = np.array([0, 0, 1, 0]), np.array([0, 1, 2, 2])
    assert label_distance(predicted, real, 4) == pytest.approx((0.5 + 0 + 0.5) / 2)


def test_parts_of_one_draw_are_disjoint():
    x = torch.arange(30)
    first, second = (subset(x, 12, 5, part) for part in (0, 1))
    assert len(set(first.tolist()) | set(second.tolist())) == 24
    assert first.tolist() == subset(x, 12, 5).tolist() != subset(x, 12, 6).tolist()
    assert sorted(subset(x, 30, 5).tolist()) == list(range(30))
    assert subset(x, 30, 5).tolist()[:12] == first.tolist()
