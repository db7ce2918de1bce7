"""A network, a schedule and a target, wrapped as `denoise(x, sigma) -> denoised` for the samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldm import choices
from ldm.errors import InputError
from ldm.schedule import Schedule
from ldm.target import Target, invertible_without_signal, x0_from

if TYPE_CHECKING:
    from ldm.artifacts import Artifact


class Denoiser:
    """The expectation of x0 given x_t, as a network sees it.

    The network is called with x_t scaled to unit variance (the data have unit variance) and
    with t, and predicts F (see `ldm.target`).
    """

    def __init__(self, network: nn.Module, schedule: Schedule, target: Target) -> None:
        """Raises: InputError where the target cannot be inverted at the schedule's start."""
        if schedule.alpha(torch.ones(1)) == 0 and not invertible_without_signal(target):
            raise InputError("the schedule starts without signal (alpha = 0), where the target says nothing of x0; choose the target x0, v or flow")
        self.network, self.schedule, self.target = network, schedule, target

    @classmethod
    def from_config(cls, config: Mapping[str, Any], shape: Sequence[int]) -> Denoiser:
        """Build from a plain `train_diffusion` section, for samples of shape (C, h, w). Weights are random."""

        def chosen(word: str, kind: str, *args: Any) -> Any:
            return choices.build(kind, config[word], config[kind][config[word]], *args)

        schedule = chosen("schedule", "schedules")
        return cls(chosen("network", "networks", tuple(shape)), schedule, chosen("target", "targets"))

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> Denoiser:
        """The trained denoiser, in evaluation mode. Raises: InputError where the weights do not fit."""
        denoiser = cls.from_config(artifact.config, artifact.config["shape"])
        artifact.load_into(denoiser.network)
        denoiser.network.eval()
        return denoiser

    def predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's F at times t (B,). x_t: (B, C, h, w) of any float type; returns float32."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        scaled = x_t / broadcast((alpha**2 + sigma**2).sqrt(), x_t)
        return self.network(scaled.float(), t.float()).float()

    def x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The denoised x0 at times t (B,), in the type of x_t."""
        alpha, sigma = broadcast(self.schedule.alpha(t), x_t), broadcast(self.schedule.sigma(t), x_t)
        return x0_from(self.target, self.predict(x_t, t), x_t, alpha, sigma).to(x_t.dtype)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise in σ-space: x = x_t / alpha (B, C, h, w), sigma the scalar σ̄ > 0.

        At σ̄ = inf (alpha = 0) x_t / alpha is out of range, and x is the noise eps instead.
        """
        t = self.schedule.t(-sigma.log()).expand(len(x))
        scale = self.schedule.alpha(t) if sigma.isfinite() else self.schedule.sigma(t)
        return self.x0(broadcast(scale, x) * x, t)

    def alpha(self, sigma: Tensor) -> Tensor:
        """The schedule's alpha where σ̄ is the scalar `sigma`; 1 at σ̄ = 0."""
        return self.schedule.alpha(self.schedule.t(-sigma.log())) if sigma > 0 else torch.ones_like(sigma)


def broadcast(level: Tensor, x: Tensor) -> Tensor:
    """(B,) → (B, 1, …, 1) in the type of x, to multiply with it."""
    return level.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
