"""Levels uniform in the schedule's own time, from t = 1 down: t = 1, 1 − 1/N, …, 1/N, then σ̄ = 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section
from ldm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.schedule import Schedule
    from ldm.spacing import Spacing


class Options(Section):
    """None."""


def build(options: Options) -> Spacing:
    return levels


def levels(schedule: Schedule, steps: int) -> Tensor:
    """(steps + 1,) in float64. Raises: InputError for more steps than a discrete chain has."""
    import torch

    from ldm.spacing import ending_in_zero

    if schedule.steps is not None and steps > schedule.steps:
        raise InputError(f"{steps} sampling steps are more than the chain's {schedule.steps}; use at most that many")
    t = schedule.snap(1 - torch.arange(steps, dtype=torch.float64) / steps)
    return ending_in_zero(schedule, schedule.half_log_snr(t))
