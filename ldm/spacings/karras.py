"""Levels uniform in σ̄^(1/ρ) (Karras et al. 2022, arXiv:2206.00364, Eq. 5)."""

from __future__ import annotations

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
    """The ends and the curvature."""

    sigma_min: float = Field(gt=0, description="last positive σ̄ (0.002 in the paper)")
    sigma_max: float = Field(gt=0, description="first σ̄ (80 in the paper)")
    rho: float = Field(gt=0, description="ρ: larger values crowd the small levels (7 in the paper)")

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

    ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    low, high = options.sigma_min ** (1 / options.rho), options.sigma_max ** (1 / options.rho)
    return ending_in_zero(schedule, -((high + ramp * (low - high)) ** options.rho).log())
