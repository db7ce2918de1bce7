"""The Huber loss (Huber 1964, Eq. 1.6): half the squared error up to delta, linear beyond."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from ldm.loss import Penalty


class Options(Section):
    """Where the square ends."""

    delta: float = Field(gt=0, description="error from which on the loss is linear (1 is usual)")


def build(options: Options) -> Penalty:
    from torch.nn import functional as F

    return lambda error: F.huber_loss(error, error.new_zeros(()).expand_as(error), reduction="none", delta=options.delta)
