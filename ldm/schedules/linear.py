"""DDPM's β schedule, linear in the step (Ho et al. 2020, arXiv:2006.11239, section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.betas import BetaOptions as Options
from ldm.betas import chain

if TYPE_CHECKING:
    from ldm.schedule import Schedule


def build(options: Options) -> Schedule:
    return chain(options, lambda u, start, end: start + u * (end - start))
