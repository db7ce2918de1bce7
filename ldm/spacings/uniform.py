"""Levels uniform in the schedule's own time, both ends included: from t = 1 to t = t_min, then σ̄ = 0."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.schedule import Schedule
    from ldm.spacing import Spacing


class Options(Section):
    """The end."""

    t_min: float = Field(gt=0, lt=1, description="last time ε, in continuous time; a discrete chain ends at its first level if that is later")


def build(options: Options) -> Spacing:
    return partial(levels, t_min=options.t_min)


def levels(schedule: Schedule, steps: int, *, t_min: float) -> Tensor:
    """(steps + 1,) in float64. Raises: InputError for more steps than a discrete chain has."""
    from ldm.spacing import at_times, ramp

    end = max(t_min, 1 / schedule.steps) if schedule.steps else t_min
    return at_times(schedule, 1 - ramp(schedule, steps) * (1 - end))
