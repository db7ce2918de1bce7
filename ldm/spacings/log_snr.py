"""Levels uniform in the log-SNR, which is uniform in log σ̄ (Lu et al. 2022, arXiv:2206.00927)."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from ldm.levels import LevelOptions as Options

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.schedule import Schedule
    from ldm.spacing import Spacing


def build(options: Options) -> Spacing:
    return partial(levels, options=options)


def levels(schedule: Schedule, steps: int, *, options: Options) -> Tensor:
    """(steps + 1,) in float64; those of a discrete chain are moved to its nearest levels."""
    from ldm.spacing import at_levels, ramp

    high, low = math.log(options.sigma_max), math.log(options.sigma_min)
    return at_levels(schedule, (high + ramp(schedule, steps) * (low - high)).exp())
