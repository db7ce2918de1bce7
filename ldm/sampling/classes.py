"""The classes of samples, by quota: a sample's class is a function of its index, whatever the seed and the batch."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ldm.lazy import Tensor, torch


def classes_of(
    indices: Sequence[int], class_sizes: Sequence[int], label: int | Mapping[int, int] | None, device: Any
) -> Tensor | None:
    """The classes of the samples of these indices, (B,): all `label`, or as it says of each, or (None) by quota.

    class_sizes: the training images of each class. None for networks without classes.
    """
    if not class_sizes:
        return None
    if isinstance(label, Mapping):
        return torch.tensor([label[index] for index in indices], device=device)
    if label is not None:
        return torch.full((len(indices),), label, device=device)
    period = sum(class_sizes)
    needed = min(1 << max(indices).bit_length(), period)  # a power of two, so that few lengths are computed
    sequence = quota(tuple(class_sizes), needed)
    return torch.tensor([sequence[index % period] for index in indices], device=device)


@lru_cache(8)
def quota(class_sizes: tuple[int, ...], n: int) -> list[int]:
    """The classes of the first n samples: in each prefix the count of each is within one of its share of the prefix.

    Sample k takes, of the classes whose count is below k · share, the one that would soonest be more than one behind:
    earliest deadline first (Tijdeman 1980, "The chairman assignment problem"), in whole numbers. To take the class
    furthest behind instead can leave a rare one 1.35 behind. After as many samples as there are training images the
    counts are those of the training images, and the sequence begins anew.
    """
    total = sum(class_sizes)
    shares = {label: size for label, size in enumerate(class_sizes) if size}
    counts, sequence = dict.fromkeys(shares, 0), []
    deadlines = {label: -(-total // size) for label, size in shares.items()}  # of the next sample of the class
    for k in range(1, n + 1):
        behind = [label for label, size in shares.items() if counts[label] * total < k * size]
        chosen = min(behind, key=deadlines.__getitem__)
        counts[chosen] += 1
        deadlines[chosen] = -(-(counts[chosen] + 1) * total // shares[chosen])
        sequence.append(chosen)
    return sequence
