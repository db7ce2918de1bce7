"""EDM's preconditioning, D = c_skip x_t + c_out F (Karras et al. 2022, arXiv:2206.00364, Eq. 7 and Table 1).

With q² = sigma² + alpha² σ_data² the skip is c_skip = alpha σ_data² / q², the output scale
c_out = sigma σ_data / q, and F = (x0 − c_skip x_t) / c_out has unit variance at every level.
The paper states alpha = 1; for a VP schedule and σ_data = 1 this is −v.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from ldm.target import Level, Target


class Options(Section):
    """The data."""

    sigma_data: float = Field(gt=0, description="standard deviation of the data (1 for standardised ones)")


def build(options: Options) -> Target:
    def target(alpha: Level, sigma: Level) -> tuple[Level, Level]:
        q = (sigma**2 + alpha**2 * options.sigma_data**2) ** 0.5
        return sigma / (options.sigma_data * q), -alpha * options.sigma_data / q

    return target
