"""The variance-preserving SDE with β(t) linear (Song et al. 2021, arXiv:2011.13456, Eq. 32)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.levels import RateOptions as Options

if TYPE_CHECKING:
    from ldm.schedule import Schedule


def build(options: Options) -> Schedule:
    from ldm.sde import VP

    return VP(options.beta_min, options.beta_max)
