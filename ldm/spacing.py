"""Where the sampling steps lie: a spacing turns a schedule and a number of steps into levels σ̄."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ldm.sampling import check_levels
from ldm.schedule import Schedule

Spacing: TypeAlias = Callable[[Schedule, int], Tensor]


def ending_in_zero(schedule: Schedule, half_log_snr: Tensor) -> Tensor:
    """σ̄ at the schedule's levels nearest to these, followed by 0.

    half_log_snr: (N,), increasing, float64. Returns (N + 1,).
    Raises: InputError where a discrete chain has fewer levels than asked for.
    """
    on_schedule = half_log_snr if schedule.steps is None else schedule.half_log_snr(schedule.t(half_log_snr))
    return check_levels(torch.cat([(-on_schedule).exp(), torch.zeros(1, dtype=torch.float64)]))
