"""The absolute error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section as Options

if TYPE_CHECKING:
    from ldm.loss import Penalty


def build(options: Options) -> Penalty:
    return lambda error: error.abs()
