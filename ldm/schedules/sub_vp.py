"""The sub-VP SDE with β(t) linear, of smaller variance than VP (Song et al. 2021, arXiv:2011.13456, Eq. 12)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.levels import RateOptions as Options

if TYPE_CHECKING:
    from ldm.schedule import Schedule


def build(options: Options) -> Schedule:
    from ldm.sde import SubVP

    return SubVP(options.beta_min, options.beta_max)
