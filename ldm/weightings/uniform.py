"""The error of the network's own prediction, unweighted: ‖ΔF‖² = c² ‖Δx0‖²."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section

if TYPE_CHECKING:
    from ldm.loss import Weighting


class Options(Section):
    """None."""


def build(options: Options) -> Weighting:
    return lambda snr, error_scale: error_scale
