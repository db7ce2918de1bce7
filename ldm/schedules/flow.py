"""The straight (rectified-flow) path: alpha = 1 − t, sigma = t (Liu et al. 2022, arXiv:2209.03003)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section

if TYPE_CHECKING:
    from ldm.schedule import Schedule

ZERO_TERMINAL_SNR = True  # alpha(1) = 0: a target that says nothing of x0 cannot be inverted there


class Options(Section):
    """None."""


def build(options: Options) -> Schedule:
    from ldm.schedule import Flow

    return Flow()
