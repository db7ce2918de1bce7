"""The cosine schedule (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section

if TYPE_CHECKING:
    from ldm.schedule import Schedule

ZERO_TERMINAL_SNR = False


class Options(Section):
    """ᾱ follows a squared cosine; β is clipped so that the last step keeps some signal."""

    steps: int = Field(ge=1, le=100_000, description="length T of the chain")
    s: float = Field(ge=0, lt=1, description="offset that keeps the first β from vanishing (0.008 in the paper)")
    beta_max: float = Field(gt=0, lt=1, description="bound on β (0.999 in the paper)")


def build(options: Options) -> Schedule:
    import torch

    from ldm.schedule import Chain

    t = torch.arange(options.steps + 1, dtype=torch.float64) / options.steps
    alphas_cumprod = ((t + options.s) / (1 + options.s) * math.pi / 2).cos() ** 2
    betas = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
    return Chain(betas.clamp(max=options.beta_max))
