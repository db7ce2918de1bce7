"""Min-SNR-γ (Hang et al. 2023, arXiv:2303.09556): min(SNR, γ) ‖Δx0‖²."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from ldm.loss import Weighting


class Options(Section):
    """The clip."""

    gamma: float = Field(gt=0, description="largest weight on the error of x0 (5 in the paper)")


def build(options: Options) -> Weighting:
    return lambda snr, error_scale: snr.clamp(max=options.gamma)
