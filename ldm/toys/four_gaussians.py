"""Four narrow Gaussians at (±1, ±1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from ldm.toy import Toy


class Options(Section):
    """Their width."""

    std: float = Field(gt=0, description="standard deviation of each")


def build(options: Options) -> Toy:
    import numpy as np

    from ldm.toy import GaussianMixture

    return GaussianMixture(np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]), options.std)
