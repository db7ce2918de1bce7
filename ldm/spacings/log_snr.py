"""Levels uniform in the log-SNR, which is uniform in log σ̄ (Lu et al. 2022, arXiv:2206.00927)."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from ldm.config import Section
from ldm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.schedule import Schedule
    from ldm.spacing import Spacing


class Options(Section):
    """The ends."""

    sigma_min: float = Field(gt=0, description="last positive σ̄")
    sigma_max: float = Field(gt=0, description="first σ̄")

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> Options:
        if self.sigma_min >= self.sigma_max:
            raise InputError(f"sigma_min {self.sigma_min:g} must be below sigma_max {self.sigma_max:g}")
        return self


def build(options: Options) -> Spacing:
    return partial(levels, options=options)


def levels(schedule: Schedule, steps: int, *, options: Options) -> Tensor:
    """(steps + 1,) in float64; those of a discrete chain are moved to its nearest levels."""
    import torch

    from ldm.spacing import ending_in_zero

    ends = -math.log(options.sigma_max), -math.log(options.sigma_min)
    return ending_in_zero(schedule, torch.linspace(*ends, steps, dtype=torch.float64))
