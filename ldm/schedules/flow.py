"""The straight (rectified-flow) path: alpha = 1 − t, sigma = t (Liu et al. 2022, arXiv:2209.03003)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ldm.config import Section

if TYPE_CHECKING:
    from ldm.schedule import Schedule


class Options(Section):
    """None."""

    zero_terminal_snr: ClassVar[bool] = True  # alpha(1) = 0


def build(options: Options) -> Schedule:
    from ldm.schedule import Flow

    return Flow()
