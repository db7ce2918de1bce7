"""Training levels with log σ̄ normal (Karras et al. 2022, arXiv:2206.00364, Table 1)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ldm.loss import Times
    from ldm.schedule import Schedule


class Options(Section):
    """The normal distribution of log σ̄, in the paper's notation."""

    P_mean: float = Field(description="its mean (−1.2 in the paper)")
    P_std: float = Field(gt=0, description="its deviation (1.2 in the paper)")


def build(options: Options) -> Times:
    return partial(draw, options=options)


def draw(schedule: Schedule, n: int, generator: Generator, *, options: Options) -> Tensor:
    """Levels beyond the schedule's ends are moved to them."""
    import torch

    log_sigma = options.P_mean + options.P_std * torch.randn(n, generator=generator, device=generator.device, dtype=torch.float64)
    return schedule.t(-log_sigma).clamp(torch.finfo(torch.float32).tiny, 1)
