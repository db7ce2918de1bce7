"""Predict the direction of the straight path: F = eps − x0 (Liu et al. 2022, arXiv:2209.03003)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section as Options

if TYPE_CHECKING:
    from ldm.target import Target


def build(options: Options) -> Target:
    return lambda alpha, sigma: (-1.0, 1.0)
