"""Ratios to held-out images: by their definitions, at equal numbers, and with the deviation that fresh sets have."""

import numpy as np
import pytest

from ldm.errors import InputError
from ldm.metrics.frechet import Labelled, Reference, frechet_distance, moments

D = 4


def drawn(n: int, seed: int, shift: float = 0.0, *, d: int = D) -> Labelled:
    """Two classes of n / 2 points each, at 0 and at 5, class 1 moved by `shift`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return Labelled(rng.normal(size=(n, d)) + (5 + shift) * labels[:, None], labels)


def by_chance(n: int, seed: int, shift: float = 0.0, *, d: int = 32) -> Labelled:
    """Two classes of as many points as chance gives, at 0 and at `shift`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    return Labelled(rng.normal(size=(n, d)) + shift * labels[:, None], labels)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(drawn(20_000, 0), drawn(1000, 1), "test images")


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(moments(a), moments(b))


def test_a_ratio_is_of_equally_many(reference):
    train, held_out = reference.train.features, reference.held_out.features
    few, many = drawn(400, 2).features, drawn(5000, 2).features
    assert reference.ratio(few) == (pytest.approx(distance(few, train) / distance(held_out[:400], train)), None, None)
    assert reference.ratio(many).value == pytest.approx(distance(many[:1000], train) / distance(held_out, train))
    assert reference.ratio(held_out).value == 1
    assert reference.distance(many) == pytest.approx(distance(many, train))


def test_copies_score_one(reference):
    wide = Reference(drawn(20_000, 0, d=32), drawn(1000, 1, d=32))  # of 32 features a distance is sure to a tenth
    others = wide.train.features[1000:2000]  # not those of the denominator
    assert wide.copies(others).value == pytest.approx(1, abs=0.3)
    train = reference.train.features
    assert reference.copies(reference.held_out.features).value == pytest.approx(0, abs=1e-6)
    fresh = drawn(1000, 3).features
    expected = distance(fresh, reference.held_out.features) / distance(train[:1000], reference.held_out.features)
    assert reference.copies(fresh) == (pytest.approx(expected), None, None)


def test_within_a_class_only_that_class_counts(reference):
    """Class 1 moved: its ratio alone grows. Wrong labels are seen, though the images are as they were."""
    plain, moved = reference.within(drawn(1000, 4)), reference.within(drawn(1000, 4, shift=1.0))
    assert plain.keys() == {0, 1}
    assert moved[0] == plain[0]
    assert moved[1].value > 20 * plain[1].value
    of_class = [x.features[x.labels == 1] for x in (drawn(1000, 4), reference.held_out, reference.train)]
    assert plain[1].value == pytest.approx(distance(of_class[0], of_class[2]) / distance(of_class[1], of_class[2]))
    mixed = drawn(1000, 4)
    wrong = reference.within(mixed._replace(labels=np.roll(mixed.labels, 1)))
    assert min(ratio.value for ratio in wrong.values()) > 100


def test_classes_with_too_few_images_are_named(reference):
    few = drawn(1000, 4)
    kept = np.r_[np.flatnonzero(few.labels == 0), np.flatnonzero(few.labels == 1)[:4]]
    with pytest.raises(InputError, match=r"4 features needs 5 images, and there are 4 of class 1 among diffusion$"):
        reference.within(Labelled(few.features[kept], few.labels[kept]), "diffusion")
    small = Reference(reference.train, drawn(8, 1), "test images")
    with pytest.raises(InputError, match=r"there are 4 of class 0 among test images, 4 of class 1 among test images$"):
        small.within(few, "diffusion")


def test_training_images_are_no_floor(reference):
    with pytest.raises(InputError, match="held-out images are no other than the training images"):
        Reference(reference.train, reference.train).ratio(drawn(20_000, 1).features)


@pytest.mark.parametrize(("row_shift", "held_out_shift"), [(1.0, 0.8), (0.0, 0.0)])
def test_the_deviation_is_that_of_fresh_sets(row_shift, held_out_shift):
    """Over resamples as over fresh rows and fresh held-out sets; near a distance of 0 a little smaller."""
    train = by_chance(20_000, 0)
    references = [Reference(train, by_chance(400, seed, held_out_shift), "test images") for seed in range(1, 61)]
    rows = [by_chance(400, seed, row_shift).features for seed in range(101, 161)]
    fresh = np.std([one.ratio(row).value for one, row in zip(references, rows, strict=True)], ddof=1)
    found = [references[i].ratio(rows[i], 50) for i in range(10)]
    # of 60 fresh pairs the deviation is sure to 9 %: thrice that, and the 13 % that a bootstrap lacks near 0
    assert np.mean([ratio.std for ratio in found]) == pytest.approx(fresh, rel=0.27 + 0.13)
    assert all(0 < ratio.real_std < ratio.std for ratio in found)
    within = references[0].within(by_chance(400, 101, row_shift), resamples=50)
    assert all(0 < ratio.real_std < ratio.std for ratio in within.values())


def test_the_deviation_of_copies_is_that_of_fresh_sets():
    """Of fresh rows and fresh training images, far enough from the held-out images that a bootstrap lacks little."""
    held_out = by_chance(20_000, 0, 1.0)
    references = [Reference(by_chance(400, seed), held_out) for seed in range(1, 61)]
    rows = [by_chance(400, seed, 0.2).features for seed in range(101, 161)]
    fresh = np.std([one.copies(row).value for one, row in zip(references, rows, strict=True)], ddof=1)
    found = [references[i].copies(rows[i], 50) for i in range(10)]
    sure = 0.27  # thrice what 60 pairs leave unsure
    assert np.mean([ratio.std for ratio in found]) == pytest.approx(fresh, rel=sure)
    assert all(0 < ratio.real_std < ratio.std for ratio in found)
