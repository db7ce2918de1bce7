"""The classes of samples: the one asked for, by quota, and the one that the denoiser sees.

By quota a sample's class is a function of its index, whatever the seed and the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ldm.diffusion import Denoiser
from ldm.lazy import Tensor, torch
from ldm.sampling.noise import Streams

CHECKED = (0.75, 1.5, 3.0)  # σ̄ at which a class is told from others, for data of unit variance
LOOKS = 2  # at a sample, each with noise of its own, until another class than the one asked for counts as seen


def classes_of(
    indices: Sequence[int], class_sizes: Sequence[int], label: int | Mapping[int, int] | None, device: Any
) -> Tensor | None:
    """The classes of the samples with these indices, (B,); None for networks without classes.

    label: the class of all of them, or index → class; None gives each class its share by quota. class_sizes: the
    number of training images of each class.
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


def mistaken(denoiser: Denoiser, x: Tensor, labels: Tensor, streams: Streams) -> tuple[Tensor, Streams]:
    """Which samples the denoiser takes for another class than theirs in each of `LOOKS` looks, and their streams.

    x: (B, C, h, w); labels: (B,). The first look is at all samples, a further one at those that failed it. Returns
    indices into the batch, in order.
    """
    left = torch.arange(len(x), device=x.device)
    for _ in range(LOOKS):
        if len(left):
            wrong = class_seen(denoiser, x[left], streams) != labels[left]
            left, streams = left[wrong], streams.of(wrong)
    return left, streams


def class_seen(denoiser: Denoiser, x: Tensor, noise: Callable[[], Tensor]) -> Tensor:
    """The class that a denoiser takes each sample for, (B, C, h, w) → (B,), as a diffusion classifier.

    Noise is added to a sample, and taken away by the denoiser, told one class after another: the class seen is the one
    of the least squared error over σ̄², summed over the levels `CHECKED`, or in a discrete chain the nearest ones,
    with the same noise for all classes. Li et al. 2023, arXiv:2303.16203. noise: gives a standard normal draw for all
    samples, (B, C, h, w).
    """
    errors = x.new_zeros(len(denoiser.class_sizes), len(x), dtype=torch.float64)
    for checked in CHECKED:
        level = denoiser.schedule.at(denoiser.schedule.time_of(-torch.tensor(checked, dtype=torch.float64).log()))
        sigma = level.sigma_t / level.alpha_t  # a discrete chain has this one, and not the one listed
        noisy = x + sigma * noise()
        for label, size in enumerate(denoiser.class_sizes):
            if not size:  # no image of this class was trained on
                errors[label] = torch.inf
                continue
            denoised = denoiser(noisy, sigma, x.new_full((len(x),), label, dtype=torch.long))
            errors[label] += ((denoised - x) / sigma).square().flatten(1).sum(1)
    return errors.argmin(0)


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
