"""Toy distributions in one or two dimensions whose truth is known, and the distances that score samples of them."""

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from ldm.config import NonNegative, Positive, Registry
from ldm.lazy import Tensor, scipy, sklearn, torch

Points = NDArray[np.float64]  # (n, d)


class Toy(ABC):
    """A distribution of points."""

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator) -> Points:
        """n points, (n, d)."""

    def score_samples(self, x: Points) -> dict[str, float]:
        """Scores of samples (n, d) that only make sense for this toy; by name."""
        return {}


toys: Registry[Toy] = Registry("toys")


class GaussianMixture(Toy):
    """Equal shares of isotropic Gaussians."""

    def __init__(self, means: Points, std: float) -> None:
        """means: (K, d)."""
        self.means, self.std = np.asarray(means, dtype=np.float64), std

    def draw(self, n: int, rng: np.random.Generator) -> Points:
        centres = self.means[rng.integers(len(self.means), size=n)]
        return centres + self.std * rng.standard_normal(centres.shape)

    def log_density(self, x: Tensor, noise: Tensor) -> Tensor:
        """log p in nats, (n,), of points (n, d) that are seen through normal noise of these deviations, (d,)."""
        variance = self.std**2 + noise**2
        distance = (x[:, None] - torch.from_numpy(self.means)).square() / variance  # (n, K, d)
        logs = -(distance + (2 * math.pi * variance).log()).sum(-1) / 2
        return logs.logsumexp(1) - math.log(len(self.means))

    def score_samples(self, x: Points) -> dict[str, float]:
        """The samples' mean offset from their nearest modes, along its largest axis, and their deviation around them.

        Both are in units of `std`. The shares of the poorest and of the richest mode are times K, so that 1 is even.
        """
        nearest = scipy.spatial.distance.cdist(x, self.means).argmin(1)
        shares = np.bincount(nearest, minlength=len(self.means)) / len(x) * len(self.means)
        around = x - self.means[nearest]
        scores = {"mode_offset": np.abs(around.mean(0)).max() / self.std}
        scores |= {"mode_std_ratio": np.sqrt((around**2).mean()) / self.std}
        scores |= {"smallest_share": shares.min(), "largest_share": shares.max()}
        return {name: float(value) for name, value in scores.items()}


@toys.register
def gaussian_1d(*, mean: float = 1.0, std: Positive = 0.01) -> Toy:
    """A narrow Gaussian on the line.

    mean: mean of the Gaussian
    std: its standard deviation
    """
    return GaussianMixture(np.array([[mean]]), std)


@toys.register
def four_gaussians(*, std: Positive = 0.05) -> Toy:
    """Four narrow Gaussians at (±1, ±1).

    std: standard deviation of each
    """
    return GaussianMixture(np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]), std)


@toys.register
class Parabola(Toy):
    """A curve in the plane: y = x² with x uniform in [0, 1]."""

    def draw(self, n: int, rng: np.random.Generator) -> Points:
        x = rng.random(n)
        return np.stack([x, x**2], 1)

    def score_samples(self, x: Points) -> dict[str, float]:
        """Distances to the curve: median and 95th percentile."""
        u = np.linspace(0, 1, 10_001)
        distance, _ = scipy.spatial.cKDTree(np.stack([u, u**2], 1)).query(x)
        p95 = float(np.percentile(distance, 95))
        return {"curve_distance_median": float(np.median(distance)), "curve_distance_p95": p95}


@toys.register
class Moons(Toy):
    """Two interleaving half circles (scikit-learn's make_moons).

    noise: standard deviation of the Gaussian noise around the circles
    """

    def __init__(self, *, noise: NonNegative = 0.05) -> None:
        self.noise = noise

    def draw(self, n: int, rng: np.random.Generator) -> Points:
        return sklearn.datasets.make_moons(n, noise=self.noise, random_state=int(rng.integers(2**31)))[0]


def sliced_wasserstein(x: Points, y: Points, projections: int, rng: np.random.Generator) -> float:
    """Mean 1-Wasserstein distance of random one-dimensional projections (Rabin et al. 2012; Bonneel et al. 2015).

    x: (n, d), y: (m, d). In one dimension there is one projection, and this is the Wasserstein distance itself.
    """
    directions = rng.standard_normal((projections if x.shape[1] > 1 else 1, x.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return float(np.mean([scipy.stats.wasserstein_distance(x @ v, y @ v) for v in directions]))


def energy_distance(x: Points, y: Points) -> float:
    """2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖, estimated without bias: for equal distributions it is 0 on average.

    Székely & Rizzo 2013, Eq. 5.1. x: (n, d), y: (m, d).
    """
    cdist = scipy.spatial.distance.cdist
    n, m = len(x), len(y)
    within = cdist(x, x).sum() / (n * (n - 1)) + cdist(y, y).sum() / (m * (m - 1))
    return float(2 * cdist(x, y).mean() - within)
