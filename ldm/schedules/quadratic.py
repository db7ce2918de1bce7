"""A β schedule with √β linear in the step (Song et al. 2021, arXiv:2010.02502, appendix D.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.betas import BetaOptions as Options
from ldm.betas import chain

if TYPE_CHECKING:
    from ldm.schedule import Schedule


def build(options: Options) -> Schedule:
    return chain(options, lambda u, start, end: (start**0.5 + u * (end**0.5 - start**0.5)) ** 2)
