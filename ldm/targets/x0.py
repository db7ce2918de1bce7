"""Predict the data: F = x0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section

if TYPE_CHECKING:
    from ldm.target import Target


class Options(Section):
    """None."""


def build(options: Options) -> Target:
    return lambda alpha, sigma: (1.0, 0.0)
