"""The training loop that all networks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ldm.errors import InputError
from ldm.optimisation import Optimisation


@dataclass(frozen=True)
class Record:
    """A point of the training curve: the mean training loss since the last point, and the state."""

    step: int
    loss: float
    skipped: int  # steps skipped so far for a non-finite loss or gradient
    averaged: nn.Module  # the averaged network, in evaluation mode


class Diverged(InputError):
    """Too many non-finite steps; `averaged` is the last good network."""

    def __init__(self, message: str, averaged: nn.Module) -> None:
        super().__init__(message)
        self.averaged = averaged


def train(network: nn.Module, loss: Callable[[], Tensor], settings: Optimisation) -> Iterator[Record]:
    """Minimise `loss()`, the mean loss of a fresh batch, yielding a record every `record_every` steps and at the end.

    A step with a non-finite loss or gradient changes nothing; it is counted on the device, so
    that no step waits for it. Raises: Diverged once `max_skipped` were counted.
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True)
    averaged = AveragedModel(network, multi_avg_fn=ramped_average(settings.ema_decay), use_buffers=True)
    averaged.eval()
    total, skipped = torch.zeros(2, device=device, dtype=torch.float64)
    seen, skipped_before = 0, 0
    for step in range(1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        with autocast(device, settings):
            batch_loss = loss()
        optimizer.zero_grad(set_to_none=True)
        batch_loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm, foreach=True)
        good = batch_loss.isfinite() & norm.isfinite()
        optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]  # the fused kernel skips the step, as for a GradScaler
        optimizer.step()
        averaged.update_parameters(network)
        total += torch.where(good, batch_loss.detach(), 0)
        skipped += ~good
        seen += 1
        if step % settings.record_every == 0 or step == settings.steps:
            count = int(skipped)
            if count >= settings.max_skipped:
                raise Diverged(f"{count} of {step} steps had a non-finite loss or gradient; try a lower lr (now {settings.lr:g})", averaged.module)
            done = seen - (count - skipped_before)
            yield Record(step, float(total) / done if done else math.nan, count, averaged.module)
            total.zero_()
            seen, skipped_before = 0, count


def ramped_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average that forgets the first weights: step n decays by min(decay, (1 + n) / (10 + n)).

    The ramp is that of TensorFlow's ExponentialMovingAverage. For `AveragedModel`.
    """

    def update(averaged: list[Tensor], current: list[Tensor], n: Tensor | int) -> None:
        get_ema_multi_avg_fn(min(decay, (1 + int(n)) / (10 + int(n))))(averaged, current, n)

    return update


def learning_rate(settings: Optimisation, step: int) -> float:
    """Linear warm-up to the peak, then half a cosine down to `lr_final` of it; step counts from 1."""
    if step <= settings.warmup:
        return settings.lr * step / settings.warmup
    progress = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return settings.lr * (settings.lr_final + (1 - settings.lr_final) * (1 + math.cos(math.pi * progress)) / 2)


def autocast(device: torch.device, settings: Optimisation) -> torch.autocast:
    """The precision that the settings state for this type of device."""
    chosen = getattr(settings.precision, device.type, "fp32")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=chosen == "bf16")


def batches(n: int, size: int, generator: Generator) -> Iterator[Tensor]:
    """Endless index batches: every epoch a fresh permutation, batches running on across epochs."""
    rest = torch.empty(0, dtype=torch.long, device=generator.device)
    while True:
        while len(rest) < size:
            rest = torch.cat([rest, torch.randperm(n, generator=generator, device=generator.device)])
        yield rest[:size]
        rest = rest[size:]
