"""A narrow Gaussian on the line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from ldm.toy import Toy


class Options(Section):
    """Its moments."""

    mean: float = Field(description="mean")
    std: float = Field(gt=0, description="standard deviation")


def build(options: Options) -> Toy:
    import numpy as np

    from ldm.toy import GaussianMixture

    return GaussianMixture(np.array([[options.mean]]), options.std)
