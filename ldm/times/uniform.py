"""Training times uniform in (0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ldm.loss import Times


class Options(Section):
    """None."""


def build(options: Options) -> Times:
    return draw


def draw(n: int, generator: Generator) -> Tensor:
    import torch

    return 1 - torch.rand(n, generator=generator, device=generator.device)
