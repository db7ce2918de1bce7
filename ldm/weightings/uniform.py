"""The error of the network's own prediction, unweighted: ‖ΔF‖² = c² ‖Δx0‖²."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section as Options

if TYPE_CHECKING:
    from ldm.loss import Weighting


def build(options: Options) -> Weighting:
    return lambda snr, error_scale: error_scale
