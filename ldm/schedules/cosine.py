"""The cosine schedule (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from ldm.betas import ChainOptions

if TYPE_CHECKING:
    from ldm.schedule import Schedule


class Options(ChainOptions):
    """ᾱ follows a squared cosine; β is clipped so that the last step keeps some signal."""

    s: float = Field(ge=0, lt=1, description="offset that keeps the first β from vanishing (0.008 in the paper)")
    beta_max: float = Field(gt=0, lt=1, description="bound on β (0.999 in the paper)")


def build(options: Options) -> Schedule:
    import torch

    from ldm.schedule import variance_preserving

    t = torch.arange(options.steps + 1, dtype=torch.float64) / options.steps
    alphas_cumprod = ((t + options.s) / (1 + options.s) * math.pi / 2).cos() ** 2
    betas = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
    return variance_preserving(betas.clamp(max=options.beta_max), zero_terminal_snr=options.zero_terminal_snr)
