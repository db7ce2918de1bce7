"""Predict the noise: F = eps (Ho et al. 2020, arXiv:2006.11239)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section as Options

if TYPE_CHECKING:
    from ldm.target import Target


def build(options: Options) -> Target:
    return lambda alpha, sigma: (0.0, 1.0)
