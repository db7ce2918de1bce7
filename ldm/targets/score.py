"""Predict the score of the conditional marginal: F = −eps / sigma (Song et al. 2021, arXiv:2011.13456, Eq. 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section as Options

if TYPE_CHECKING:
    from ldm.target import Target


def build(options: Options) -> Target:
    return lambda alpha, sigma: (0.0, -1 / sigma)
