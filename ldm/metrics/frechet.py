"""The Fréchet distance between Gaussians fitted to two sets of features, in float64.

A `Reference` takes the distance of images to the training images over that of held-out images, which is the floor: over
all images, and within each class.
"""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np
import scipy.linalg
from joblib import cpu_count
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ldm.errors import InputError

Array = NDArray[np.float64]
Features = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (d,) and scatter Σ (x − mean)(x − mean)ᵀ (d, d) of n features."""

    mean: Array
    scatter: Array
    n: int

    @property
    def covariance(self) -> Array:
        """The unbiased estimate, (d, d)."""
        return self.scatter / (self.n - 1)

    @cached_property
    def root(self) -> Array:
        """The symmetric square root of the covariance, (d, d); eigenvalues that rounding left below 0 count as 0."""
        values, vectors = scipy.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


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

    The last trace is that of the symmetric (Σ_b^½ Σ_a Σ_b^½)^½, a sum of roots of eigenvalues that are ≥ 0 up to
    rounding. The root of Σ_b is kept for the next distance to b. Raises: InputError where the widths differ.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"features of widths {a.mean.size} and {b.mean.size}; take both from one classifier")
    product = b.root @ a.covariance @ b.root
    cross = np.sqrt(scipy.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return float(max(distance, 0.0))  # the roots of tiny eigenvalues can leave −1e-6 between equal sets


class Labelled(NamedTuple):
    """Features of images, in a random order, and the class that each image is of or should be of."""

    features: Features  # (n, d)
    labels: NDArray[np.integer]  # (n,)

    def of_class(self, label: int) -> Features:
        """The features of the images of a class, (≤ n, d)."""
        return self.features[self.labels == label]


class Ratio(NamedTuple):
    """A distance to the training images, over that of as many held-out images, and its standard deviations.

    The deviations are over bootstrap resamples: `std` of both sides, `real_std` of the held-out images alone; None
    where nothing was resampled. Resamples vary the shares of the classes, also where these are by quota: of such rows
    the deviation is rather too wide. Seeds of a sampling and of a training add deviations of their own to the second.
    """

    value: float
    std: float | None = None
    real_std: float | None = None


class Reference:
    """Training images, and held-out images, whose own distance to the training images is the floor.

    A ratio of 1 says that images lie as close to the training images as the held-out ones do. Both sides of a ratio
    are of equally many images, the first of each set, since the distance depends on their number.
    """

    def __init__(self, train: Labelled, held_out: Labelled, name: str = "held-out images") -> None:
        """name: of the held-out images, for messages. Raises: InputError as `moments`, for either set."""
        self.train, self.held_out, self.name = train, held_out, name
        self.of_train = moments(train.features, "training images")
        self.of_held_out = moments(held_out.features, name)
        self.floors: dict[tuple[int | None, int, int], tuple[float, float | None]] = {}

    def distance(self, features: Features) -> float:
        """The distance of the features (n, d) to the training images."""
        return frechet_distance(moments(features), self.of_train)

    def ratio(self, features: Features, resamples: int = 0) -> Ratio:
        """The distance of the features (n, d) to the training images, over the floor."""
        return self._ratio(features, self.held_out.features, self.of_train, None, resamples)

    def within(
        self, row: Labelled, name: str = "features", resamples: int = 0, class_names: Sequence[str] | None = None
    ) -> dict[int, Ratio]:
        """The ratio of each class of the training images, among images of that class alone.

        name: of the row; class_names: for messages, None for numbers. Raises: InputError where classes have too few
        images for a covariance.
        """
        d = row.features.shape[1]
        sets = {name: row, self.name: self.held_out, "training images": self.train}
        counts = [(label, which, len(x.of_class(label))) for label in self.classes for which, x in sets.items()]
        named = class_names or range(256)
        few = [f"{count} of class {named[label]} among {which}" for label, which, count in counts if count <= d]
        if few:
            more = f" and {len(few) - 3} more such sets" if len(few) > 3 else ""
            listed = f"{', '.join(few[:3])}{more}"
            raise InputError(f"a covariance of {d} features needs {d + 1} images, and there are {listed}")
        ratios = {}
        for label in self.classes:
            own, held_out, train = (x.of_class(label) for x in sets.values())
            ratios[label] = self._ratio(own, held_out, moments(train), label, resamples)
        return ratios

    @property
    def classes(self) -> list[int]:
        """The classes of the training images, in order."""
        return [int(label) for label in np.unique(self.train.labels)]

    def copies(self, features: Features, resamples: int = 0) -> Ratio:
        """The distance to the held-out images, over that of as many training images, whose deviation is `real_std`.

        It is about 1 for copies of training images, and for a perfect model of them; 0 for all the held-out images
        themselves; above 1 where copies alone would lie closer.
        """
        copied, of = self.train.features[: len(features)], self.of_held_out
        value = _distance(features, of) / _distance(copied, of)
        return _deviating(value, _scatter(features, of, resamples), _scatter(copied, of, resamples))

    def _ratio(self, row: Features, held_out: Features, train: Moments, label: int | None, resamples: int) -> Ratio:
        """label: the class of all of them, None for any: floors are computed once for each."""
        n = min(len(row), len(held_out))
        key = label, n, resamples
        if key not in self.floors:
            self.floors[key] = _distance(held_out[:n], train), _scatter(held_out[:n], train, resamples)
        floor, real = self.floors[key]
        if floor < 1e-6 * np.trace(train.covariance):  # of equal sets, what rounding leaves
            raise InputError(f"{self.name} are no other than the training images, so that there is no floor")
        return _deviating(_distance(row[:n], train) / floor, _scatter(row[:n], train, resamples), real)


def _deviating(value: float, own: float | None, real: float | None) -> Ratio:
    """The ratio with the deviations that those of its two distances make, which are relative to them."""
    return Ratio(value, value * math.hypot(own, real), value * real) if own and real else Ratio(value)


def _distance(features: Features, train: Moments) -> float:
    return frechet_distance(moments(features, "images compared"), train)


def _scatter(features: Features, train: Moments, resamples: int) -> float | None:
    """Standard deviation of the distance over bootstrap resamples, over their mean; None without resamples.

    A resample repeats images, which makes each distance larger: hence in relation to the mean. Each is computed on one
    thread, and as many at a time as there are CPUs: matrices as small as these gain nothing from several.
    """
    if not resamples:
        return None
    rng, n = np.random.default_rng(0), len(features)
    drawn = [rng.integers(n, size=n) for _ in range(resamples)]
    with threadpool_limits(1), ThreadPoolExecutor(cpu_count()) as pool:
        distances = list(pool.map(lambda index: _distance(features[index], train), drawn))
    return float(np.std(distances, ddof=1) / np.mean(distances))
