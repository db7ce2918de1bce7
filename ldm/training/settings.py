"""The settings of a training run (see `ldm.training.loop`)."""

from typing import Annotated

from pydantic import Field

from ldm.config import Count, Natural, Positive, Rate, Section, Several, Share
from ldm.precision import Precision

LearningRate = Annotated[float, Field(gt=0, le=1)]


class Optimisation(Section):
    """AdamW, and Muon for kernels, with warm-up, cosine decay, gradient clipping, and averaged weights.

    steps: optimiser steps
    batch_size: images in a step
    lr: peak learning rate
    muon_lr: peak learning rate of Muon, which moves the kernels of convolutions; 0 leaves them to AdamW
    lr_final: learning rate at the end, as a share of the peak
    warmup: steps of linear warm-up
    betas: AdamW's decay rates of the first and second moment
    weight_decay: decoupled weight decay
    clip_norm: largest norm of the gradient
    ema_decay: decay per step of the averaged weights, which are the ones kept; 0 keeps the last
    max_skipped: steps in a row with a non-finite loss or gradient that end the run
    record_every: steps between two points of the training curve
    precision: arithmetic of the network: fp32 (IEEE, without TF32), or bf16 by autocast; auto is bf16 where the device
      has instructions for it (most GPUs, CPUs with avx512_bf16 or amx_bf16), else fp32
    compile: compile the network by torch.compile; needs a C++ compiler, and Triton on a GPU
    capture: record a step as a CUDA graph and replay it; null does so for one process on a GPU, and nowhere else
    """

    steps: Count
    batch_size: Several
    lr: LearningRate
    muon_lr: Share = 0.0
    lr_final: Share = 0.0
    warmup: Natural = 0
    betas: Annotated[tuple[Rate, Rate], Field(strict=False)] = (0.9, 0.99)
    weight_decay: Rate = 0.0
    clip_norm: Positive = 1.0
    ema_decay: Rate = 0.999
    max_skipped: Count = 50
    record_every: Count = 50
    precision: Precision = "fp32"
    compile: bool = False
    capture: bool | None = None
