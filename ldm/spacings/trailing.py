"""Levels uniform in the schedule's own time from t = 1 down: t = 1, 1 − 1/N, …, 1/N, then σ̄ = 0.

On a discrete chain these are the "trailing" steps of Lin et al. 2024, arXiv:2305.08891, Table 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section as Options

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.schedule import Schedule
    from ldm.spacing import Spacing


def build(options: Options) -> Spacing:
    return levels


def levels(schedule: Schedule, steps: int) -> Tensor:
    """(steps + 1,) in float64. Raises: InputError for more steps than a discrete chain has."""
    from ldm.spacing import at_times, ramp

    return at_times(schedule, 1 - ramp(schedule, steps) * (1 - 1 / steps))
