"""EDM's levels: no scaling of the data, and σ^(1/ρ) linear in t (Karras et al. 2022, arXiv:2206.00364, Eq. 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ldm.levels import LevelOptions

if TYPE_CHECKING:
    from ldm.schedule import Schedule


class Options(LevelOptions):
    """The ends, the curvature, and whether only a few levels exist."""

    zero_terminal_snr: ClassVar[bool] = False
    rho: float = Field(gt=0, description="ρ: larger values crowd the small levels (7 in the paper)")
    steps: int | None = Field(ge=2, le=100_000, description="number of levels of a discrete chain; null for continuous time")


def build(options: Options) -> Schedule:
    import torch

    from ldm.schedule import Chain, Karras

    continuous = Karras(options.sigma_min, options.sigma_max, options.rho)
    if options.steps is None:
        return continuous
    sigmas = continuous.sigma(torch.linspace(0, 1, options.steps, dtype=torch.float64))
    return Chain(torch.ones_like(sigmas), sigmas)
