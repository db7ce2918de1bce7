"""Splits: shares in every class, at least one image each, and equal images together."""

import pytest
import torch

from ldm.data import split_by_shares
from ldm.errors import InputError

SHARES = (0.7, 0.1, 0.2)
SPLITS = ("train", "validation", "test")


def images_of(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64).view(-1, 1, 1, 1).expand(-1, 1, 1, 2).to(torch.uint8).contiguous()


def split(values: list[int], labels: list[int], seed: int = 0, shares=SHARES) -> dict[str, torch.Tensor]:
    names = [f"c{label}" for label in range(max(labels) + 1)]
    generator = torch.Generator().manual_seed(seed)
    return split_by_shares(images_of(values), torch.tensor(labels), names, shares, generator)


def test_every_class_has_the_shares():
    labels = [0] * 100 + [1] * 30 + [2] * 5 + [3] * 3
    found = split(list(range(138)), labels)
    assert sorted(torch.cat(list(found.values())).tolist()) == list(range(138))
    counts = {name: torch.tensor(labels)[rows].bincount().tolist() for name, rows in found.items()}
    assert counts == {"train": [70, 21, 3, 1], "validation": [10, 3, 1, 1], "test": [20, 6, 1, 1]}
    other = split(list(range(138)), labels, shares=(0.5, 0.25, 0.25))
    assert torch.tensor(labels)[other["test"]].bincount().tolist() == [25, 8, 1, 1]


def test_the_order_is_random_and_the_seeds():
    labels = [0, 1] * 50
    first, again, other = (split(list(range(100)), labels, seed)["train"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.tensor(labels)[first].diff().abs().sum() > 10  # not class by class
    assert (first.diff() < 0).any()


@pytest.mark.parametrize("seed", range(20))
def test_equal_images_stay_together_also_across_classes(seed):
    values = [0] * 6 + [1] * 2 + [2, 3, 4, 5] + [6, 6, 7, 8, 9]
    labels = [0] * 4 + [1] * 2 + [0] * 2 + [0, 0, 1, 1] + [1] * 5
    found = split(values, labels, seed)
    of_split = {name: {values[i] for i in rows.tolist()} for name, rows in found.items()}
    assert all(of_split[name] for name in SPLITS)
    assert sum(map(len, of_split.values())) == len(set(values))
    assert sum(map(len, found.values())) == len(values)


@pytest.mark.parametrize("values", [[0, 0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [0, 1, 2]])
def test_no_split_is_empty_when_groups_are_large(values):
    for seed in range(10):
        found = split(values, [0] * len(values), seed)
        assert all(len(found[name]) for name in SPLITS)


def test_a_class_too_small_is_named_with_the_remedy():
    words = r"classes with fewer than 3 .*: c1 \(2\), c2 \(1\); add some, or "
    with pytest.raises(InputError, match=words + "remove their folders"):  # a number would leave out class 0 too
        split([0, 1, 2, 3, 4, 4, 5, 7, 8, 9], [0, 0, 0, 1, 1, 1, 2, 3, 3, 3])
    with pytest.raises(InputError, match=words + "leave such classes out by min_per_class 4"):
        split([0, 1, 2, 6, 3, 4, 4, 5, 7, 8, 9, 10], [0, 0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 3])
    with pytest.raises(InputError, match=r"c2 \(1\); add some$"):  # without these classes one would be left
        split([0, 1, 2, 6, 3, 4, 4, 5], [0, 0, 0, 0, 1, 1, 1, 2])
