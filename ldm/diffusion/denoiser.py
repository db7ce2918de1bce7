"""A network, a schedule and a prediction as one function, `denoiser(x, sigma, labels) -> denoised`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from ldm.artifacts import Artifact
from ldm.diffusion.prediction import Prediction, invertible_without_signal, predictions, x0_from
from ldm.diffusion.schedule import Level, Schedule, broadcast, schedules
from ldm.errors import InputError
from ldm.lazy import Module, Tensor, torch
from ldm.networks import networks


@dataclass(frozen=True, eq=False)
class Denoiser:
    """The expectation of x0 given x_t, as a network estimates it.

    The network is called with x_t scaled to unit variance (the data have unit variance), with t, and with labels where
    it was trained on classes; its output is F (see `ldm.diffusion.prediction`). Raises: InputError where x0 does not
    follow from F at the schedule's noisiest time.
    """

    network: Module
    schedule: Schedule
    prediction: Prediction
    shape: Sequence[int] = ()  # of a sample, (C, h, w)
    class_sizes: Sequence[int] = ()  # the number of training images of each class; empty without labels
    class_names: Sequence[str] = ()  # where the classes have names

    def __post_init__(self) -> None:
        if self.schedule.alpha_t(torch.ones(1)) == 0 and not invertible_without_signal(self.prediction):
            raise InputError("at alpha = 0 this prediction says nothing of x0; choose x0, v, flow or edm")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], shape: Sequence[int], class_sizes: Sequence[int] = ()) -> Self:
        """Build from a resolved `train_diffusion` section, for samples (C, h, w). Weights are random."""
        schedule, build = schedules.chosen(config, "schedule"), networks.chosen(config, "network")
        network = build(tuple(shape), classes=len(class_sizes)) if class_sizes else build(tuple(shape))
        return cls(network, schedule, predictions.chosen(config, "prediction"), shape, class_sizes)

    @classmethod
    def from_artifact(cls, artifact: Artifact, device: str = "cpu") -> Self:
        """The trained denoiser, in evaluation mode. Raises: InputError where the weights do not fit."""
        sizes, names = _classes(artifact)
        denoiser = artifact.build(lambda config: cls.from_config(config, config["shape"], sizes))
        artifact.load_into(denoiser.network, device)
        return replace(denoiser, class_names=names)

    @property
    def device(self) -> Any:
        """The device of the network's weights."""
        return next(self.network.parameters()).device

    def predict(self, x_t: Tensor, level: Level, labels: Tensor | None = None) -> Tensor:
        """The network's output F. x_t: (B, C, h, w) of any float type; level, labels: (B,); returns float32."""
        unit = x_t / broadcast((level.alpha_t**2 + level.sigma_t**2).sqrt(), x_t)
        if labels is None and self.class_sizes:
            raise InputError(
                f"labels None: this network takes the class of each sample, (B,), below {len(self.class_sizes)}"
            )
        condition = () if labels is None else (labels,)
        return self.network(unit.float(), level.t.float(), *condition).float()

    def x0(self, x_t: Tensor, level: Level, labels: Tensor | None = None) -> Tensor:
        """The denoised x0, (B, C, h, w) in the type of x_t."""
        alpha_t, sigma_t = broadcast(level.alpha_t, x_t), broadcast(level.sigma_t, x_t)
        return x0_from(self.prediction, self.predict(x_t, level, labels), x_t, alpha_t, sigma_t).to(x_t.dtype)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Denoise in σ-space: x = x_t / alpha_t (B, C, h, w), sigma the tensor () of σ̄ > 0, labels (B,).

        At σ̄ = inf (alpha_t = 0) x_t / alpha_t is out of range, and x is the noise eps instead.
        Raises: InputError for a σ̄ that is not positive, or that a discrete chain does not have.
        """
        return self.x0(*self.at_sigma(x, sigma), labels)

    def at_sigma(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Level]:
        """x_t (B, C, h, w) and its level (B,), of a state and a noise level as `__call__` takes them."""
        level = self.schedule.at_sigma(sigma).expand(x)
        scale = level.alpha_t if sigma.isfinite() else level.sigma_t
        return broadcast(scale, x) * x, level


def _classes(artifact: Artifact) -> tuple[list[int], list[str]]:
    """The number of training images of each class, and the classes' names; both are empty for a network without labels.

    Raises: InputError where the artifact states anything else, or names that are not as many different texts.
    """
    sizes, names = (artifact.config.get(key, []) for key in ("class_sizes", "class_names"))
    valid = isinstance(sizes, list) and all(type(size) is int and 0 <= size < 2**32 for size in sizes)
    if not valid or (sizes and not any(sizes)):
        raise InputError(f"{artifact.path}: class_sizes {str(sizes)[:60]} are no numbers of training images")
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if names and (not texts or len(set(names)) != len(sizes)):
        raise InputError(f"{artifact.path}: class_names {str(names)[:60]} are no names of {len(sizes)} classes")
    return sizes, names
