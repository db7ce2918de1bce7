"""The trained model as one object: load the pipeline's artifacts, sample and decode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm import artifacts
from ldm.config import Registry
from ldm.errors import InputError
from ldm.networks.autoencoder import Decoder
from ldm.sampling import Guided, classes_of, sample_batches, samplers, spacings, split_range

Label = str | int | None
Choice = str | Mapping[str, Mapping[str, Any]] | None


@dataclass(frozen=True)
class Model:
    """A guided denoiser, the decoder of the latents it was trained on, and how to sample."""

    denoiser: Guided
    decoder: Decoder
    sampling: Mapping[str, Any]  # the resolved section of the stage `sample`: its sampler, spacing, steps and so on

    def sample(
        self,
        n: int,
        seed: int = 0,
        first: int = 0,
        *,
        label: Label | Sequence[Label] = None,
        steps: int | None = None,
        sampler: Choice = None,
        spacing: Choice = None,
    ) -> Tensor:
        """Draw n images, uint8 (n, C, H, W): the ones that the stages draw with this seed, from index `first` on.

        label: the class of all of them, by its name or its index, or a list of n classes; None takes that of the stage
        `sample`, and where it has none, each class by its quota. steps, sampler, spacing: None takes those of the stage
        `sample`; a sampler or spacing is its name, or {name: options}. Raises: InputError for an unknown name or class,
        bad options, n below 1, or a seed or first index that is no whole number from 0 on.
        """
        steps = self.sampling["steps"] if steps is None else steps
        sigmas = self._build(spacings, "spacing", spacing)(self.denoiser.schedule, steps)
        _check_natural(seed=seed)
        own, batches = self._classes(n, first, label), split_range(first, n, self.sampling["batch_size"])
        move = self._build(samplers, "sampler", sampler)
        precision = self.sampling.get("precision", "fp32")
        with torch.inference_mode():
            drawn = sample_batches(self.denoiser, move, sigmas, batches, seed=seed, label=own, precision=precision)
            images = torch.cat([self.decoder(batch.x) for batch in drawn])
        return images.clone()  # made outside of inference mode, it may be edited in place

    def labels(self, n: int, first: int = 0, *, label: Label | Sequence[Label] = None) -> Tensor | None:
        """The classes of the images that `sample` draws, (n,), by their index; None of a model without classes."""
        own = self._classes(n, first, label)
        return classes_of(range(first, first + n), self.denoiser.class_sizes, own, "cpu")

    def _classes(self, n: int, first: int, label: Any) -> int | dict[int, int] | None:
        """The class of all samples, that of each by its number, or None for quotas."""
        _check_natural(first=first)
        if not isinstance(n, Integral) or n < 1:
            raise InputError(f"{n} images cannot be drawn; ask for at least 1")
        label = self.sampling.get("label") if label is None else label
        if isinstance(label, str) or not isinstance(label, Sequence | Tensor | np.ndarray):
            return self.denoiser.class_of(label)
        if len(label) != n or any(one is None for one in label):
            raise InputError(f"label: {len(label)} classes for {n} images; name one for all, or one for each")
        each = label if isinstance(label, Sequence) else label.tolist()
        return {first + i: self.denoiser.class_of(one) for i, one in enumerate(each)}

    def _build(self, registry: Registry[Any], word: str, choice: Choice) -> Any:
        """The choice asked for, or else that of the stage `sample`, whose options also serve a name without options."""
        recorded = self.sampling[registry.name]
        if choice is None or isinstance(choice, str):
            name = choice or self.sampling[word]
            return registry.build(name, recorded.get(name))
        ((name, options),) = choice.items()
        return registry.build(name, options)


def _check_natural(**values: Any) -> None:
    """Raises: InputError for a value that is no whole number from 0 on."""
    for name, value in values.items():
        if not isinstance(value, Integral) or not 0 <= value < 2**63:  # type: ignore[operator]
            raise InputError(f"{name} {value}: a whole number from 0 to 2**63 - 1 is wanted")


def load(folder: str | Path, device: str | None = None) -> Model:
    """The model whose artifacts lie in a folder, as `dvc repro` leaves them.

    device: None is the GPU where there is one, else the CPU. Raises: InputError for a missing or corrupt artifact, or
    ones that do not belong together.
    """

    def read(kind: str) -> artifacts.Artifact:
        return artifacts.load(Path(folder) / artifacts.STAGES[kind] / f"{kind}.safetensors", kind)

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    latents, denoiser, guide, samples = (read(kind) for kind in ("latents", "denoiser", "guide", "samples"))
    vae = read("vae") if "vae" in latents.lineage else None
    artifacts.merge_lineage([a for a in (vae, latents, denoiser, guide, samples) if a])
    guided = Guided.from_artifacts(denoiser, guide, device=device, **samples.config["guidance"])
    return Model(guided, Decoder.from_artifacts(latents, vae, device), samples.config)
