"""Options that several choices share: a range of noise levels, and a range of noise rates."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from ldm.config import Section
from ldm.errors import InputError


class LevelOptions(Section):
    """The range of σ̄."""

    sigma_min: float = Field(gt=0, description="smallest positive σ̄ (0.002 in EDM)")
    sigma_max: float = Field(gt=0, description="largest σ̄ (80 in EDM)")

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> LevelOptions:
        if self.sigma_min >= self.sigma_max:
            raise InputError(f"sigma_min {self.sigma_min:g} must be below sigma_max {self.sigma_max:g}")
        return self


class RateOptions(Section):
    """The range of β(t)."""

    zero_terminal_snr: ClassVar[bool] = False
    beta_min: float = Field(gt=0, description="β(0) (0.1 in the paper)")
    beta_max: float = Field(gt=0, description="β(1) (20 in the paper)")
