"""Real images that others are compared with: ratios of Fréchet distances, over all images and within each class."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldm.metrics.frechet import Features, Moments, frechet_distance, moments


class Labelled(NamedTuple):
    """Features of images, in a random order, and the class that each image is of or should be of."""

    features: Features  # (n, d)
    labels: NDArray[np.integer]  # (n,)

    def of_class(self, label: int) -> Features:
        """The features of the images of a class, (≤ n, d)."""
        return self.features[self.labels == label]


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

    def distance(self, features: Features) -> float:
        """The distance of the features (n, d) to the training images."""
        return frechet_distance(moments(features), self.of_train)

    def ratio(self, features: Features) -> float:
        """The distance of the features (n, d) to the training images, over the floor."""
        return self._ratio(features, self.held_out.features, self.of_train)

    def deviation(self, features: Features, resamples: int, seed: int) -> float:
        """Standard deviation of the ratio over bootstrap resamples of both its sides.

        A resample repeats images, which makes each distance larger, so a side's deviation is taken in relation to its
        resamples' mean. Seeds of a sampling and of a training add deviations of their own.
        """
        n = min(len(features), len(self.held_out.features))
        sides = self._scatter(features[:n], resamples, seed), self._floor_scatter(n, resamples, seed)
        return self.ratio(features) * float(np.hypot(*sides))

    @lru_cache(8)  # noqa: B019 - a reference lives as long as the run
    def _floor_scatter(self, n: int, resamples: int, seed: int) -> float:
        return self._scatter(self.held_out.features[:n], resamples, seed + 1)

    def _scatter(self, features: Features, resamples: int, seed: int) -> float:
        """Standard deviation of the distance over resamples, over its mean."""
        rng, n = np.random.default_rng(seed), len(features)
        distances = [self.distance(features[rng.integers(n, size=n)]) for _ in range(resamples)]
        return float(np.std(distances, ddof=1) / np.mean(distances))

    def within(self, row: Labelled, name: str = "features") -> dict[int, float]:
        """The ratio of each class of the training images, among images of that class alone.

        name: of the row, for messages. Raises: InputError for a class that has too few images for a covariance.
        """
        return {label: self._within(row, name, label) for label in np.unique(self.train.labels).tolist()}

    def _within(self, row: Labelled, name: str, label: int) -> float:
        train = moments(self.train.of_class(label), f"training images of class {label}")
        return self._ratio(row.of_class(label), self.held_out.of_class(label), train, f"{name} of class {label}")

    def copies(self, features: Features) -> float:
        """The distance to the held-out images, over that of as many training images: about 1 for copies of these.

        It is 0 for the held-out images themselves, and lies above 1 where copies alone would lie closer.
        """
        n = len(features)
        copied = moments(self.train.features[:n], "training images")
        return frechet_distance(moments(features), self.of_held_out) / frechet_distance(copied, self.of_held_out)

    def _ratio(self, row: Features, held_out: Features, train: Moments, name: str = "features") -> float:
        n = min(len(row), len(held_out))
        fewer = name if n == len(row) else f"{self.name}, beside {name},"
        near, floor = (frechet_distance(moments(side[:n], fewer), train) for side in (row, held_out))
        return near / floor
