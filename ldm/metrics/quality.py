"""Measures beside the Fréchet distance, on features (n, d): KID, precision and recall, labels, memorisation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ldm.errors import InputError

Features = NDArray[np.floating]


def subset(x: Tensor, n: int, seed: int, part: int = 0) -> Tensor:
    """A seeded random subset of n rows, the same rows for tensors of equal length; x itself if it has exactly n rows.

    Another part of the same seed is disjoint, as far as there are rows enough.
    """
    if len(x) == n:
        return x
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order.roll(-part * n)[:n]]


def kernel_distance(x: Features, y: Features, subsets: int, size: int, rng: np.random.Generator) -> tuple[float, float]:
    """KID, the unbiased squared MMD with kernel (x·y / d + 1)³: mean and deviation over random subsets.

    Bińkowski et al. 2018, arXiv:1801.01401, section 4. x: (n, d), y: (m, d).
    """
    size = min(size, len(x), len(y))
    values = []
    for _ in range(subsets):
        a, b = (z[rng.permutation(len(z))[:size]].astype(np.float64) for z in (x, y))
        within = [(np.sum(k) - np.trace(k)) / (size * (size - 1)) for k in (_kernel(a, a), _kernel(b, b))]
        values.append(sum(within) - 2 * _kernel(a, b).mean())
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _kernel(a: Features, b: Features) -> Features:
    return (a @ b.T / a.shape[1] + 1) ** 3


class Manifold(NamedTuple):
    """Real features and the distance of each to its k-th neighbour among the others."""

    features: Features  # (n, d)
    radii: Features  # (n,)
    k: int

    @classmethod
    def fit(cls, features: Features, k: int) -> Manifold:
        """Raises: InputError for fewer than k + 1 features."""
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


def label_statistics(probabilities: Features, real_labels: NDArray[np.integer]) -> dict[str, float]:
    """A classifier's mean confidence, and the total-variation distance of its labels' shares to the real ones.

    probabilities: (n, classes); real_labels: (m,).
    """
    classes = probabilities.shape[1]
    predicted = np.bincount(probabilities.argmax(1), minlength=classes) / len(probabilities)
    real = np.bincount(real_labels, minlength=classes) / len(real_labels)
    return {"confidence": float(probabilities.max(1).mean()), "label_tv": float(np.abs(predicted - real).sum() / 2)}


def nearest(queries: Features, train: Features) -> tuple[Features, NDArray[np.integer]]:
    """Distance and index of each query's nearest neighbour in the training set: (n, d), (m, d) → (n,), (n,)."""
    distances, indices = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(train).kneighbors(queries)
    return distances[:, 0], indices[:, 0]


def share_closer(generated: Features, test: Features, percentile: float) -> float:
    """The share of generated samples that lie closer to the training set than the p-th percentile of test samples.

    Both: distances to the nearest training sample, (n,). About p / 100 without memorisation; 1 for copies.
    """
    return float((generated < np.percentile(test, percentile)).mean())
