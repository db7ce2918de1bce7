"""The linear β schedule of DDPM (Ho et al. 2020, arXiv:2006.11239, section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from ldm.config import Section
from ldm.errors import InputError

if TYPE_CHECKING:
    from ldm.schedule import Schedule

ZERO_TERMINAL_SNR = False


class Options(Section):
    """β rises linearly over the chain; the ends are those of 1,000 steps and scale with 1000 / T."""

    steps: int = Field(ge=1, le=100_000, description="length T of the chain")
    beta_start: float = Field(gt=0, lt=1, description="first β, at T = 1000")
    beta_end: float = Field(gt=0, lt=1, description="last β, at T = 1000")

    @model_validator(mode="after")
    def _betas_are_below_one(self) -> Options:
        largest = max(self.beta_start, self.beta_end) * 1000 / self.steps
        if largest >= 1:
            raise InputError(f"with steps {self.steps} the largest scaled beta is {largest:.3g}, but it must be below 1; use more steps")
        return self


def build(options: Options) -> Schedule:
    import torch

    from ldm.schedule import Chain

    betas = torch.linspace(options.beta_start, options.beta_end, options.steps, dtype=torch.float64)
    return Chain(betas * 1000 / options.steps)
