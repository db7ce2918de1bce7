"""The variance-exploding SDE with σ geometric in t (Song et al. 2021, arXiv:2011.13456, Eq. 30)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ldm.levels import LevelOptions

if TYPE_CHECKING:
    from ldm.schedule import Schedule


class Options(LevelOptions):
    """The ends."""

    zero_terminal_snr: ClassVar[bool] = False


def build(options: Options) -> Schedule:
    from ldm.sde import VE

    return VE(options.sigma_min, options.sigma_max)
