"""A curve in the plane: y = x² with x uniform in [0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section as Options

if TYPE_CHECKING:
    from ldm.toy import Toy


def build(options: Options) -> Toy:
    import numpy as np
    from scipy.spatial import cKDTree

    from ldm.toy import Points, Toy

    class Parabola(Toy):
        def draw(self, n: int, rng: np.random.Generator) -> Points:
            x = rng.random(n)
            return np.stack([x, x**2], 1)

        def judge(self, x: Points) -> dict[str, float]:
            """Distances to the curve: median and 95th percentile."""
            u = np.linspace(0, 1, 10_001)
            distance, _ = cKDTree(np.stack([u, u**2], 1)).query(x)
            return {"curve_distance_median": float(np.median(distance)), "curve_distance_p95": float(np.percentile(distance, 95))}

    return Parabola()
