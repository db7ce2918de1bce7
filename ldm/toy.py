"""Toy distributions whose truth is known: what a toy is, and the distances that judge samples of it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

Points = NDArray[np.float64]  # (n, d)


class Toy(ABC):
    """A distribution in one or two dimensions."""

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator) -> Points:
        """n points, (n, d)."""

    def log_density(self, x: Points) -> Points | None:
        """log p in nats, (n,), where it has a closed form; else None."""
        return None

    def judge(self, x: Points) -> dict[str, float]:
        """Statistics of its own that samples (n, d) of this toy must match."""
        return {}


class GaussianMixture(Toy):
    """Equal shares of isotropic Gaussians."""

    def __init__(self, means: Points, std: float) -> None:
        """means: (K, d)."""
        self.means, self.std = np.asarray(means, dtype=np.float64), std

    def draw(self, n: int, rng: np.random.Generator) -> Points:
        chosen = self.means[rng.integers(len(self.means), size=n)]
        return chosen + self.std * rng.standard_normal(chosen.shape)

    def log_density(self, x: Points) -> Points:
        d = x.shape[1]
        exponents = -cdist(x, self.means, "sqeuclidean") / (2 * self.std**2)  # (n, K)
        return np.logaddexp.reduce(exponents, 1) - np.log(len(self.means)) - d / 2 * np.log(2 * np.pi * self.std**2)

    def judge(self, x: Points) -> dict[str, float]:
        """Mean and deviation around the nearest mode, and the share of the samples in the poorest and the richest mode."""
        distance = cdist(x, self.means)
        nearest = distance.argmin(1)
        shares = np.bincount(nearest, minlength=len(self.means)) / len(x)
        around = x - self.means[nearest]
        return {
            "mode_offset": float(np.abs(around.mean(0)).max() / self.std),
            "mode_std_ratio": float(np.sqrt((around**2).mean()) / self.std),
            "smallest_share": float(shares.min() * len(shares)),
            "largest_share": float(shares.max() * len(shares)),
        }


def sliced_wasserstein(x: Points, y: Points, projections: int, rng: np.random.Generator) -> float:
    """Mean 1-Wasserstein distance of random one-dimensional projections (Rabin et al. 2012; Bonneel et al. 2015).

    x: (n, d), y: (m, d). In one dimension it is the Wasserstein distance itself.
    """
    directions = rng.standard_normal((projections if x.shape[1] > 1 else 1, x.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return float(np.mean([wasserstein_distance(x @ v, y @ v) for v in directions]))


def energy_distance(x: Points, y: Points) -> float:
    """2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖, unbiased (Székely & Rizzo 2013, Eq. 5.1); 0 in the mean for equal distributions."""
    n, m = len(x), len(y)
    within = cdist(x, x).sum() / (n * (n - 1)) + cdist(y, y).sum() / (m * (m - 1))
    return float(2 * cdist(x, y).mean() - within)
