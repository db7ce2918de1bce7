"""Training times whose logit is normal (Esser et al. 2024, arXiv:2403.03206, section 3.1)."""

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
    """The normal distribution of log(t / (1 − t))."""

    mean: float = Field(description="below 0 favours little noise")
    std: float = Field(gt=0, description="1 in the paper")


def build(options: Options) -> Times:
    return partial(draw, options=options)


def draw(schedule: Schedule, n: int, generator: Generator, *, options: Options) -> Tensor:
    import torch

    return (options.mean + options.std * torch.randn(n, generator=generator, device=generator.device)).sigmoid()
