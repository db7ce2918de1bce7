"""EDM's weights (Karras et al. 2022, arXiv:2206.00364, Table 1): (σ̄² + σ_data²) / (σ̄ σ_data)² ‖Δx0‖², with SNR = 1 / σ̄²."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from ldm.loss import Weighting


class Options(Section):
    """The data."""

    sigma_data: float = Field(gt=0, description="standard deviation of the data (1 for standardised ones)")


def build(options: Options) -> Weighting:
    return lambda snr, error_scale: snr + options.sigma_data**-2
