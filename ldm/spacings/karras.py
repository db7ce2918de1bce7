"""Levels uniform in σ̄^(1/ρ) (Karras et al. 2022, arXiv:2206.00364, Eq. 5)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from ldm.levels import LevelOptions

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.schedule import Schedule
    from ldm.spacing import Spacing


class Options(LevelOptions):
    """The ends and the curvature."""

    rho: float = Field(gt=0, description="ρ: larger values crowd the small levels (7 in the paper)")


def build(options: Options) -> Spacing:
    return partial(levels, options=options)


def levels(schedule: Schedule, steps: int, *, options: Options) -> Tensor:
    """(steps + 1,) in float64; those of a discrete chain are moved to its nearest levels."""
    from ldm.spacing import at_levels, ramp

    low, high = options.sigma_min ** (1 / options.rho), options.sigma_max ** (1 / options.rho)
    return at_levels(schedule, (high + ramp(schedule, steps) * (low - high)) ** options.rho)
