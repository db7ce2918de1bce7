"""Measures beside the Fréchet distance, on features (n, d): precision and recall, and shares of classes."""

from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ldm.errors import InputError

Features = NDArray[np.floating]


def subset(x: Tensor, n: int, seed: int, part: int = 0) -> Tensor:
    """A seeded random subset of n rows, in a random order: the same rows for tensors of equal length.

    Another part of the same seed is disjoint, as far as there are rows enough.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order.roll(-part * n)[:n]]


class Manifold(NamedTuple):
    """Real features and the distance of each to its k-th neighbour among the others."""

    features: Features  # (n, d)
    radii: Features  # (n,)
    k: int

    @classmethod
    def fit(cls, features: Features, k: int) -> Self:
        """The neighbourhoods of features (n, d). Raises: InputError for fewer than k + 1 of them."""
        if len(features) <= k:
            raise InputError(f"{len(features)} samples have no {k}-th neighbour; at least {k + 1} are needed")
        distances, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(features).kneighbors()
        return cls(features, distances[:, k - 1], k)


def precision_recall(real: Manifold, fake: Manifold) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991), and density and coverage.

    The last two are those of Naeem et al. 2020, arXiv:2002.09797.
    """
    precise, dense = 0, 0
    recalled, covered = np.zeros(len(real.features), bool), np.zeros(len(real.features), bool)
    for start in range(0, len(fake.features), 1000):
        rows = slice(start, start + 1000)
        distance = _distances(fake.features[rows], real.features)  # (≤ 1000, n)
        inside = distance <= real.radii
        precise += inside.any(1).sum()
        dense += inside.sum()
        covered |= inside.any(0)
        recalled |= (distance <= fake.radii[rows, None]).any(0)
    count = len(fake.features)
    shares = {"precision": precise / count, "recall": recalled.mean()}
    shares |= {"density": dense / (real.k * count), "coverage": covered.mean()}
    return {name: float(share) for name, share in shares.items()}


def _distances(a: Features, b: Features) -> Features:
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0))


def label_distance(predicted: NDArray[np.integer], real: NDArray[np.integer], classes: int) -> float:
    """The total-variation distance of the shares of predicted classes, (n,), to those of real ones, (m,): 0 to 1."""
    shares = [np.bincount(labels, minlength=classes) / len(labels) for labels in (predicted, real)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
