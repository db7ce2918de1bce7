"""The settings of a training run (see `ldm.training`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ldm.config import Section

Precision = Literal["fp32", "bf16"]


class PrecisionByDevice(Section):
    """Chosen per device type, by measurement: small kernels gain nothing from bf16 on most CPUs."""

    cpu: Precision = Field(description="arithmetic on a CPU: fp32, or bf16 autocast")
    cuda: Precision = Field(description="arithmetic on a GPU: fp32, or bf16 autocast")


class Optimisation(Section):
    """AdamW, and Muon for kernels, with warm-up, cosine decay, gradient clipping, and a moving average of the weights."""

    steps: int = Field(ge=1, description="optimiser steps")
    batch_size: int = Field(ge=2, description="images a step")
    lr: float = Field(gt=0, le=1, description="peak learning rate")
    muon_lr: float = Field(default=0.0, ge=0, le=1, description="peak learning rate of Muon, which moves the kernels of convolutions; 0: AdamW moves them too")
    lr_final: float = Field(ge=0, le=1, description="learning rate at the end, as a share of the peak")
    warmup: int = Field(ge=0, description="steps of linear warm-up")
    betas: tuple[float, float] = Field(strict=False, description="AdamW's decay rates of the first and second moment")
    weight_decay: float = Field(ge=0, lt=1, description="decoupled weight decay")
    clip_norm: float = Field(gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(ge=0, lt=1, description="decay a step of the averaged weights, which are the ones kept; 0 keeps the last")
    max_skipped: int = Field(ge=1, description="steps with a non-finite loss or gradient after which the run stops")
    record_every: int = Field(ge=1, description="steps between two points of the training curve")
    precision: PrecisionByDevice
    compile: bool = Field(default=False, description="compile the network by torch.compile; needs a C++ compiler, and Triton on a GPU")
