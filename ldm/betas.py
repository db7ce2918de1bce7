"""What the discrete β schedules of DDPM share: their options, and how β scales with the length of the chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from ldm.config import Section
from ldm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.schedule import Schedule

REFERENCE_STEPS = 1000  # the length for which the papers state their βs


class ChainOptions(Section):
    """A chain and its end."""

    steps: int = Field(ge=1, le=100_000, description="length T of the chain")
    zero_terminal_snr: bool = Field(description="rescale the chain so that nothing of the signal is left at its end; not with the targets eps and score")


class BetaOptions(ChainOptions):
    """β from one end to the other."""

    beta_start: float = Field(gt=0, lt=1, description="first β, at T = 1000 (0.0001 in DDPM)")
    beta_end: float = Field(gt=0, lt=1, description="last β, at T = 1000 (0.02 in DDPM)")
    scaled: bool = Field(description="multiply β by 1000 / T, so that the end is noise for every T; false takes β as it is")

    @model_validator(mode="after")
    def _betas_are_below_one(self) -> BetaOptions:
        largest = max(self.beta_start, self.beta_end) * self.factor
        if largest > 1 or (largest == 1 and not self.zero_terminal_snr):
            raise InputError(f"with steps {self.steps} the largest scaled beta is {largest:.3g}, but it must be below 1; use more steps")
        return self

    @property
    def factor(self) -> float:
        return REFERENCE_STEPS / self.steps if self.scaled else 1.0


def chain(options: BetaOptions, shape: Callable[[Any, float, float], Tensor]) -> Schedule:
    """The chain whose β follow `shape(u, beta_start, beta_end)`, u rising from 0 to 1."""
    import torch

    from ldm.schedule import variance_preserving

    u = torch.linspace(0, 1, options.steps, dtype=torch.float64)
    betas = options.factor * shape(u, options.beta_start, options.beta_end)
    return variance_preserving(betas, zero_terminal_snr=options.zero_terminal_snr)
