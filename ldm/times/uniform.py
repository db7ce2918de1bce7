"""Training times uniform in (0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.config import Section as Options

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ldm.loss import Times
    from ldm.schedule import Schedule


def build(options: Options) -> Times:
    return draw


def draw(schedule: Schedule, n: int, generator: Generator) -> Tensor:
    import torch

    return 1 - torch.rand(n, generator=generator, device=generator.device)
