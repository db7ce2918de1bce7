"""Predict the velocity F = alpha eps − sigma x0 (Salimans & Ho 2022, arXiv:2202.00512)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section as Options

if TYPE_CHECKING:
    from ldm.target import Target


def build(options: Options) -> Target:
    return lambda alpha, sigma: (-sigma, alpha)
