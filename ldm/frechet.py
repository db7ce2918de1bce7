"""The Fréchet distance between Gaussians fitted to two sets of features, in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ldm.errors import InputError

Array = NDArray[np.float64]


class Moments(NamedTuple):
    """Mean (d,) and unbiased covariance (d, d) of n features."""

    mean: Array
    covariance: Array
    n: int


def moments(features: NDArray[np.floating], name: str = "features") -> Moments:
    """Fit a Gaussian to features (n, d).

    Raises: InputError for NaN or infinite features, and for n ≤ d, where the covariance is singular.
    """
    if features.ndim != 2:
        raise InputError(f"{name}: an array of shape {features.shape} is not (n, d)")
    n, d = features.shape
    if n <= d:
        raise InputError(f"{name}: {n} samples cannot give the covariance of {d} features; at least {d + 1} are needed")
    if not np.isfinite(features).all():
        raise InputError(f"{name}: {np.count_nonzero(~np.isfinite(features))} of {features.size} values are NaN or infinite")
    x = features.astype(np.float64)
    mean = x.mean(0)
    x -= mean
    return Moments(mean, x.T @ x / (n - 1), n)


def frechet_distance(a: Moments, b: Moments) -> float:
    """‖μ_a − μ_b‖² + Tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) (Heusel et al. 2017, arXiv:1706.08500, Eq. 6).

    The last trace is that of the symmetric (Σ_a^½ Σ_b Σ_a^½)^½, a sum of roots of eigenvalues
    that are ≥ 0 up to rounding. Raises: InputError where the widths differ.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"features of widths {a.mean.size} and {b.mean.size} do not compare; take both from one classifier")
    values, vectors = scipy.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ b.covariance @ root
    cross = np.sqrt(scipy.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return float(max(distance, 0.0))  # the roots of tiny eigenvalues can leave −1e-6 between equal sets
