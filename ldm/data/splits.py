"""Splits by class, in which equal pictures stay together."""

from collections import Counter
from collections.abc import Sequence

from ldm.data.image_folder import listing
from ldm.errors import InputError
from ldm.images import groups_of_equals
from ldm.lazy import Generator, Tensor, torch

NAMES = ("train", "validation", "test")


def split_by_shares(
    images: Tensor, labels: Tensor, names: Sequence[str], shares: Sequence[float], generator: Generator
) -> dict[str, Tensor]:
    """The indices of the images of each split, in a random order: in every class the shares, and at least one.

    images: (N, C, H, W) in uint8; those equal in every pixel go to one split, with the class of the first. names: of
    the classes. Raises: InputError for classes with fewer than three different images, one for each split.
    """
    groups = groups_of_equals(images)
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    order = [list(members)[i] for i in torch.randperm(len(members), generator=generator).tolist()]
    order.sort(key=lambda group: -len(members[group]))  # stable: the large ones first, which are hard to place
    of_class: dict[int, list[int]] = {label: [] for label in range(len(names))}
    for group in order:
        of_class[int(labels[group])].append(group)  # a group has the index of its first image
    splits: dict[str, list[int]] = {name: [] for name in NAMES}
    if few := [label for label, own in of_class.items() if len(own) < len(NAMES)]:
        counts = listing(f"{names[label]} ({len(of_class[label])})" for label in few)
        sizes = torch.bincount(labels.long(), minlength=len(names)).tolist()
        least = max(sizes[label] for label in few) + 1
        others = [sizes[label] for label in of_class if label not in few]
        remedy = "add some"
        if len(others) > 1:  # else no two classes would be left
            by_count = f"leave such classes out by min_per_class {least}"
            remedy += f", or {by_count if min(others) >= least else 'remove their folders'}"
        raise InputError(f"classes with fewer than 3 different images that no class before has: {counts}; {remedy}")
    for own in of_class.values():
        missing, empty = wanted_of(sum(len(members[group]) for group in own), shares), list(NAMES)
        for i, group in enumerate(own):
            name = max(empty if len(own) - i <= len(empty) else NAMES, key=missing.__getitem__)
            empty = [other for other in empty if other != name]
            splits[name] += members[group]
            missing[name] -= len(members[group])
    indices = {name: torch.tensor(split) for name, split in splits.items()}
    return {name: split[torch.randperm(len(split), generator=generator)] for name, split in indices.items()}


def wanted_of(n: int, shares: Sequence[float]) -> Counter[str]:
    """How many of n images each split should have: rounded, at least one, and the rest for training."""
    validation, test = (max(round(share * n), 1) for share in shares[1:])
    return Counter(train=n - validation - test, validation=validation, test=test)
