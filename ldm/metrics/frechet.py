"""The Fréchet distance between Gaussians fitted to two sets of features, in float64."""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ldm.errors import InputError

Array = NDArray[np.float64]
Features = NDArray[np.floating]


class Moments(NamedTuple):
    """Mean (d,) and scatter Σ (x − mean)(x − mean)ᵀ (d, d) of n features."""

    mean: Array
    scatter: Array
    n: int

    @property
    def covariance(self) -> Array:
        """The unbiased estimate, (d, d)."""
        return self.scatter / (self.n - 1)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two sets together (Chan, Golub, LeVeque 1983, Eq. 2.1, for vectors)."""
    n, shift = a.n + b.n, b.mean - a.mean
    return Moments(a.mean + shift * (b.n / n), a.scatter + b.scatter + np.outer(shift, shift) * (a.n * b.n / n), n)


def moments(batches: Features | Iterable[Features], name: str = "features") -> Moments:
    """Fit a Gaussian to features, (n, d) at once or in batches; no more than a batch is held in float64.

    Raises: InputError for NaN or infinite features, for features that are all equal, and for
    n ≤ d, where the covariance is singular.
    """
    if isinstance(batches, np.ndarray):
        batches = np.array_split(batches, max(len(batches) // 4096, 1))
    total = reduce(merge, (_of_batch(batch, name) for batch in batches))
    d = len(total.mean)
    if total.n <= d:
        raise InputError(f"{name}: {total.n} samples cannot give the covariance of {d} features; use {d + 1} or more")
    if not total.scatter.any():
        raise InputError(f"{name}: all {total.n} samples are equal, so that they have no covariance")
    return total


def _of_batch(features: Features, name: str) -> Moments:
    if features.ndim != 2:
        raise InputError(f"{name}: an array of shape {features.shape} is not (n, d)")
    if not np.isfinite(features).all():
        count = np.count_nonzero(~np.isfinite(features))
        raise InputError(f"{name}: {count} of {features.size} values are NaN or infinite")
    x = features.astype(np.float64)
    mean = x.mean(0) if len(x) else np.zeros(x.shape[1])
    x -= mean
    return Moments(mean, x.T @ x, len(x))


def frechet_distance(a: Moments, b: Moments) -> float:
    """‖μ_a − μ_b‖² + Tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) (Heusel et al. 2017, arXiv:1706.08500, Eq. 6).

    The last trace is that of the symmetric (Σ_a^½ Σ_b Σ_a^½)^½, a sum of roots of eigenvalues
    that are ≥ 0 up to rounding. Raises: InputError where the widths differ.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"features of widths {a.mean.size} and {b.mean.size}; take both from one classifier")
    values, vectors = scipy.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ b.covariance @ root
    cross = np.sqrt(scipy.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return float(max(distance, 0.0))  # the roots of tiny eigenvalues can leave −1e-6 between equal sets
