"""Where the sampling steps lie: a spacing turns a schedule and a number of steps into levels σ̄."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ldm.errors import InputError
from ldm.sampling import check_levels
from ldm.schedule import Schedule

Spacing: TypeAlias = Callable[[Schedule, int], Tensor]


def ramp(schedule: Schedule, steps: int) -> Tensor:
    """0, 1/(N−1), …, 1 in float64, (N,). Raises: InputError for a number of steps that the schedule does not have."""
    if steps < 1:
        raise InputError(f"{steps} sampling steps are too few; use at least 1")
    if schedule.steps is not None and steps > schedule.steps:
        raise InputError(f"{steps} sampling steps are more than the chain's {schedule.steps}; use at most that many")
    return torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)


def at_times(schedule: Schedule, t: Tensor) -> Tensor:
    """σ̄ at decreasing times t (N,), followed by 0: (N + 1,). Raises: InputError where they do not decrease on the schedule."""
    return _ending_in_zero(schedule.half_log_snr(schedule.snap(t)))


def at_levels(schedule: Schedule, sigmas: Tensor) -> Tensor:
    """Decreasing levels σ̄ (N,), or those of a discrete chain nearest to them, followed by 0: (N + 1,).

    Raises: InputError for levels beyond the schedule's, and where a chain has too few in their range.
    """
    half_log_snr = -sigmas.log()
    ends = schedule.t(half_log_snr[[0, -1]])
    if not (ends.max() < 1 + 1e-6 and ends.min() > -1e-6):
        raise InputError(f"the noise levels {sigmas[0]:.4g} to {sigmas[-1]:.4g} are not all on the schedule; choose sigma_min and sigma_max within its own")
    return _ending_in_zero(half_log_snr if schedule.steps is None else schedule.half_log_snr(schedule.t(half_log_snr)))


def _ending_in_zero(half_log_snr: Tensor) -> Tensor:
    return check_levels(torch.cat([(-half_log_snr).exp(), torch.zeros(1, dtype=torch.float64)]))
