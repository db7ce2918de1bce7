"""A β schedule on a logistic curve from −6 to 6 (Xu et al. 2022, arXiv:2203.02923, whose code states it)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.betas import BetaOptions as Options
from ldm.betas import chain

if TYPE_CHECKING:
    from ldm.schedule import Schedule


def build(options: Options) -> Schedule:
    return chain(options, lambda u, start, end: start + (12 * u - 6).sigmoid() * (end - start))
