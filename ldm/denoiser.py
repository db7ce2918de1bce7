"""A network, a schedule and a target, wrapped as `denoise(x, sigma) -> denoised` for the samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldm import choices
from ldm.artifacts import merge_lineage
from ldm.errors import InputError
from ldm.schedule import Schedule, broadcast
from ldm.target import Target, invertible_without_signal, x0_from

if TYPE_CHECKING:
    from ldm.artifacts import Artifact
    from ldm.sampling import Streams


class Denoiser:
    """The expectation of x0 given x_t, as a network sees it.

    The network is called with x_t scaled to unit variance (the data have unit variance) and
    with t, and predicts F (see `ldm.target`).
    """

    def __init__(self, network: nn.Module, schedule: Schedule, target: Target, class_sizes: Sequence[int] = ()) -> None:
        """class_sizes: the training images of each class; none for a network without labels.

        Raises: InputError where the target cannot be inverted at the schedule's start.
        """
        if schedule.alpha(torch.ones(1)) == 0 and not invertible_without_signal(target):
            raise InputError("the schedule starts without signal (alpha = 0), where the target says nothing of x0; choose the target x0, v, flow or edm")
        self.network, self.schedule, self.target, self.class_sizes = network, schedule, target, list(class_sizes)
        self.labels: Tensor | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], shape: Sequence[int], class_sizes: Sequence[int] = ()) -> Denoiser:
        """Build from a plain `train_diffusion` section, for samples of shape (C, h, w) and of these classes. Weights are random."""

        def chosen(word: str, kind: str, *args: Any) -> Any:
            return choices.build(kind, config[word], config[kind][config[word]], *args)

        schedule = chosen("schedule", "schedules")
        network = chosen("network", "networks", tuple(shape), *([len(class_sizes)] if class_sizes else []))
        return cls(network, schedule, chosen("target", "targets"), class_sizes)

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> Denoiser:
        """The trained denoiser, in evaluation mode. Raises: InputError where the weights do not fit."""
        sizes = class_sizes(artifact)
        denoiser = artifact.build(lambda config: cls.from_config(config, config["shape"], sizes))
        artifact.load_into(denoiser.network)
        denoiser.network.eval()
        return denoiser

    def given(self, labels: Tensor | None) -> Denoiser:
        """The same denoiser for samples of these classes: labels (B,), or None for a network without."""
        other = copy(self)
        other.labels = labels
        return other

    def predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's F at times t (B,). x_t: (B, C, h, w) of any float type; returns float32.

        A network that was trained with labels needs those of `given`.
        """
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        scaled = x_t / broadcast((alpha**2 + sigma**2).sqrt(), x_t)
        condition = () if self.labels is None else (self.labels,)
        return self.network(scaled.float(), t.float(), *condition).float()

    def x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The denoised x0 at times t (B,), in the type of x_t."""
        alpha, sigma = broadcast(self.schedule.alpha(t), x_t), broadcast(self.schedule.sigma(t), x_t)
        return x0_from(self.target, self.predict(x_t, t), x_t, alpha, sigma).to(x_t.dtype)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise in σ-space: x = x_t / alpha (B, C, h, w), sigma the scalar σ̄ > 0.

        At σ̄ = inf (alpha = 0) x_t / alpha is out of range, and x is the noise eps instead.
        Raises: InputError for a σ̄ that is not positive, or that a discrete chain does not have.
        """
        t = self._time(sigma).to(x.device).expand(len(x))
        scale = self.schedule.alpha(t) if sigma.isfinite() else self.schedule.sigma(t)
        return self.x0(broadcast(scale, x) * x, t)

    def alpha(self, sigma: Tensor) -> Tensor:
        """The schedule's alpha where σ̄ is the scalar `sigma`; 1 at σ̄ = 0."""
        return self.schedule.alpha(self._time(sigma)) if sigma > 0 else torch.ones_like(sigma)

    def _time(self, sigma: Tensor) -> Tensor:
        if not sigma > 0:
            raise InputError(f"cannot denoise at the noise level {sigma:g}; it must be above 0")
        t = self.schedule.t(-sigma.log())
        on_schedule = torch.isclose(self.schedule.half_log_snr(t), -sigma.log(), rtol=0, atol=1e-6)
        if self.schedule.steps is not None and not on_schedule:
            raise InputError(f"the chain has no noise level {sigma:g}; a sampler that leaves its levels (heun with S_churn) needs continuous time")
        return t


class Guided:
    """Autoguidance: a denoiser led away from a worse version of itself, D = D_guide + w (D_main − D_guide).

    Karras et al. 2024, arXiv:2406.02507, Eq. 3; within an interval of σ̄ only (Kynkäänniemi et al. 2024,
    arXiv:2404.07724). A weight w of 1 is no guidance.
    """

    def __init__(self, main: Denoiser, guide: Denoiser, *, weight: float, sigma_min: float, sigma_max: float) -> None:
        self.main, self.guide, self.weight, self.interval = main, guide, weight, (sigma_min, sigma_max)
        self.schedule, self.alpha, self.class_sizes = main.schedule, main.alpha, main.class_sizes

    @classmethod
    def from_artifacts(cls, denoiser: Artifact, guide: Artifact, *, device: str, **guidance: float) -> Guided:
        """Two trained denoisers on a device. Raises: InputError where weights do not fit, or where the two are of different data."""
        merge_lineage([denoiser, guide])
        main, worse = Denoiser.from_artifact(denoiser), Denoiser.from_artifact(guide)
        for network in (main.network, worse.network):
            network.to(device)
        return cls(main, worse, **guidance)

    def given(self, labels: Tensor | None) -> Guided:
        """As `Denoiser.given`."""
        other = copy(self)
        other.main, other.guide = self.main.given(labels), self.guide.given(labels)
        return other

    def check_label(self, label: int | None) -> None:
        """Raises: InputError unless the networks were trained on this class; None is any."""
        if label is not None and not self.class_sizes:
            raise InputError(f"label {label}: the denoiser was trained without labels; train it with class_labels, or leave label out")
        learned = [known for known, size in enumerate(self.class_sizes) if size]
        if label is not None and (not isinstance(label, Integral) or label not in learned):
            raise InputError(f"label {label!r}: the denoiser was not trained on this class, but on {', '.join(map(str, learned))}")

    def given_streams(self, streams: Streams, label: int | None) -> Guided:
        """For the samples of these streams: all of one class, or (None) each of one drawn as often as in training.

        Of networks without labels, itself. With labels it takes the first draw of every stream, and the
        noise comes after it. Raises: InputError for a class that the networks were not trained on.
        """
        self.check_label(label)
        if not self.class_sizes:
            return self
        drawn = streams.classes(self.class_sizes)
        return self.given(drawn if label is None else torch.full_like(drawn, label))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """As `Denoiser.__call__`."""
        denoised = self.main(x, sigma)
        if self.weight == 1 or not self.interval[0] <= sigma <= self.interval[1]:
            return denoised
        guide = self.guide(x, sigma)
        return guide + self.weight * (denoised - guide)


def class_sizes(artifact: Artifact) -> list[int]:
    """How many training images each class has; none for a network without labels. Raises: InputError for anything else."""
    sizes = artifact.config.get("class_sizes", [])
    if not isinstance(sizes, list) or not all(type(size) is int and 0 <= size < 2**32 for size in sizes) or (sizes and not any(sizes)):
        raise InputError(f"{artifact.path}: class_sizes of its configuration are not the numbers of training images: {str(sizes)[:60]}")
    return sizes
