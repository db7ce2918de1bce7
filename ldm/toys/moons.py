"""Two interleaving half circles (scikit-learn's make_moons)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from ldm.toy import Toy


class Options(Section):
    """Their blur."""

    noise: float = Field(ge=0, description="standard deviation of Gaussian noise around the circles")


def build(options: Options) -> Toy:
    import numpy as np
    from sklearn.datasets import make_moons

    from ldm.toy import Points, Toy

    class Moons(Toy):
        def draw(self, n: int, rng: np.random.Generator) -> Points:
            return make_moons(n, noise=options.noise, random_state=int(rng.integers(2**31)))[0]

    return Moons()
