"""The trained model as one object: load the pipeline's artifacts, sample and decode."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ldm import artifacts
from ldm.artifacts import Artifact
from ldm.config import MOST, Registry, shown
from ldm.errors import InputError
from ldm.networks.autoencoder import Decoder
from ldm.precision import has_bf16, ieee_fp32
from ldm.sampling import Guided, Samples, classes_of, sample_batches, samplers, spacings, split_range

NETWORKS = ("denoiser", "guide", "vae")
LARGEST_INDEX = 2**63 - 1  # seed, or index of a sample
MOMENTS = ("channel_mean", "channel_std")  # of the latents, by which they are standardised
Label = str | int | None
Choice = str | Mapping[str, Mapping[str, Any]] | None


@dataclass(frozen=True)
class Model:
    """A guided denoiser, the decoder of the latents it was trained on, and how to sample."""

    denoiser: Guided
    decoder: Decoder
    sampling: Mapping[str, Any]  # the resolved section of the stage `sample`: its sampler, spacing, steps and so on
    parts: Mapping[str, Artifact] = field(repr=False)  # by kind, what it was made from; for `save`

    @classmethod
    def from_artifacts(cls, parts: Mapping[str, Artifact], device: str) -> Self:
        """The model of the artifacts denoiser, guide, latents, samples, and vae where the latents are not the images.

        Raises: InputError where they do not belong together, or weights do not fit.
        """
        artifacts.merge_lineage(list(parts.values()))
        guidance = parts["samples"].build(lambda config: dict(config["guidance"]))
        guided = Guided.from_artifacts(parts["denoiser"], parts["guide"], device=device, **guidance)
        decoder = Decoder.from_artifacts(parts["latents"], parts.get("vae"), device)
        return cls(guided, decoder, parts["samples"].config, parts)

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

        The networks compute in the precision of the stage `sample`, or in fp32 on a device without bf16.

        label: the class of all of them, by its name or its index, or a list of n classes; None takes that of the stage
        `sample`, and where it has none, each class by its quota. steps, sampler, spacing: None takes those of the stage
        `sample`; a sampler or spacing is its name, or {name: options}. Raises: InputError for an unknown name or class,
        bad options, n or steps that are no whole numbers from 1 to 10⁹, or a seed or first index that is none from 0.
        """
        with torch.inference_mode(), ieee_fp32():
            batches = self._batches(n, seed, first, label, steps, sampler, spacing)
            images = torch.cat([self.decoder(batch.x) for batch in batches])
        return images.clone()  # made outside of inference mode, it may be edited in place

    def denoising(
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
        """The states from noise to the images that `sample` draws, decoded: uint8 (n, steps + 1, C, H, W).

        What is given and what is raised is as for `sample`.
        """
        with torch.inference_mode(), ieee_fp32():
            (batch,) = self._batches(n, seed, first, label, steps, sampler, spacing, shown=n)
            states: Any = batch.trajectory
            decoded = self.decoder(states.flatten(0, 1).to(self.denoiser.main.device))
        return decoded.unflatten(0, states.shape[:2]).clone()

    def save(self, path: str | Path) -> None:
        """Write one file that `load` takes: the networks, the latents' mean and deviation, and how all were made.

        Raises: InputError for a folder, a file in no folder, or what is no path.
        """
        tensors = {f"latents.{name}": self.parts["latents"][name] for name in MOMENTS}
        for kind in filter(self.parts.__contains__, NETWORKS):
            tensors |= {f"{kind}.{name}": tensor for name, tensor in self.parts[kind].tensors.items()}
        config = {kind: artifact.config for kind, artifact in self.parts.items()}
        if (target := _path(path)).is_dir():
            raise InputError(f"{path} is a folder; name a file in it")
        if not target.parent.is_dir():
            raise InputError(f"{path}: there is no folder {target.parent}; make it, or name another file")
        artifacts.save(target, "model", tensors, config, list(self.parts.values()))

    def labels(self, n: int, first: int = 0, *, label: Label | Sequence[Label] = None) -> Tensor | None:
        """The classes of the images that `sample` draws, (n,), by their index; None of a model without classes."""
        own = self._classes(n, first, label)
        return classes_of(range(int(first), int(first) + int(n)), self.denoiser.class_sizes, own, "cpu")

    def _classes(self, n: int, first: int, label: Any) -> dict[int, int] | None:
        """The index of each sample's class by its number, or None for quotas."""
        n, first = _whole("n", n, 1), _whole("first", first, 0, LARGEST_INDEX)
        label = self.sampling.get("label") if label is None else label
        label = label.tolist() if isinstance(label, Tensor | np.ndarray) else label
        if isinstance(label, str) or not isinstance(label, Sequence):
            index = self.denoiser.class_of(label)
            return None if index is None else dict.fromkeys(range(first, first + n), index)
        plain: list[Any] = [one.tolist() if isinstance(one, Tensor | np.ndarray) else one for one in label]
        each = [self.denoiser.class_of(one) for one in plain]
        if len(each) != n or None in each:
            wanted = f"a class that was trained on is wanted for each of {n} images, or one for all"
            raise InputError(f"label {str(list(label))[:60]}: {wanted}")
        return {first + i: index for i, index in enumerate(each) if index is not None}

    def _batches(
        self, n: int, seed: int, first: int, label: Any, steps: Any, sampler: Choice, spacing: Choice, shown: int = 0
    ) -> Iterator[Samples]:
        """The samples, batch by batch. shown: above 0, all are one batch, and the states of so many are kept."""
        steps = self.sampling["steps"] if steps is None else steps
        _whole("steps", steps, 1)
        sigmas = self._build(spacings, "spacing", spacing)(self.denoiser.schedule, steps)
        own, size = self._classes(n, first, label), shown or self.sampling["batch_size"]
        batches, seed = split_range(int(first), int(n), int(size)), _whole("seed", seed, 0, LARGEST_INDEX)
        move = self._build(samplers, "sampler", sampler)
        own_precision = has_bf16(self.denoiser.main.device.type) and self.sampling.get("precision")
        how: dict[str, Any] = {"seed": seed, "label": own, "precision": own_precision or "fp32", "shown": shown}
        how["redraw"] = self.sampling.get("redraw", False)  # older models do not say
        return sample_batches(self.denoiser, move, sigmas, batches, **how)

    def _build(self, registry: Registry[Any], word: str, choice: Choice) -> Any:
        """The choice asked for, or else that of the stage `sample`, whose options also serve a name without options."""
        recorded = self.sampling[registry.name]
        if choice is None or isinstance(choice, str):
            name = self.sampling[word] if choice is None else choice
            return registry.build(name, recorded.get(name))
        if not isinstance(choice, Mapping) or len(choice) != 1:
            raise InputError(f"{word} {choice!r}: write its name, or {{name: options}}")
        ((name, options),) = choice.items()
        return registry.build(name, options)


def _whole(name: str, value: Any, least: int, most: int = MOST) -> int:
    """The value as an int. Raises: InputError unless it is a whole number within the bounds."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= most:
        raise InputError(f"{name} {shown(value)}: a whole number from {least} to {most} is wanted")
    return int(value)


def _path(path: Any) -> Path:
    """The value as a path. Raises: InputError for what is none."""
    if not isinstance(path, str | os.PathLike) or "\0" in os.fspath(path):
        raise InputError(f"{path!r} is no path; name a file of Model.save, or a folder of artifacts")
    return Path(path)


def load(path: str | Path, device: str | None = None) -> Model:
    """The model in a file that `Model.save` wrote, or in a folder of artifacts, as `dvc repro` leaves it.

    device: None is the GPU where there is one, else the CPU. Raises: InputError for a device that is not there or that
    torch cannot use, a missing or corrupt artifact, ones that do not belong together, or what is no path.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    try:
        torch.zeros(1, device=device).item()  # which a device without data, such as meta, cannot
    except (RuntimeError, TypeError, AssertionError) as error:  # a torch without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise InputError(f"device {device!r}: {reason}; choose cpu, or cuda where torch can use a GPU") from None
    path = _path(path)
    parts = _parts_of_folder(path) if path.is_dir() else _parts_of_file(path)
    return Model.from_artifacts(parts, device)


def _parts_of_folder(folder: Path) -> dict[str, Artifact]:
    if not (folder / artifacts.STAGES["latents"]).is_dir():
        remedy = "name a model file, such as artifacts/export/model.safetensors, or the folder artifacts of a recipe"
        raise InputError(f"{folder} holds no artifacts of a pipeline; {remedy}")

    def read(kind: str) -> Artifact:
        return artifacts.load(folder / artifacts.STAGES[kind] / f"{kind}.safetensors", kind)

    parts = {kind: read(kind) for kind in ("latents", "denoiser", "guide", "samples")}
    return parts | ({"vae": read("vae")} if "vae" in parts["latents"].lineage else {})


def _parts_of_file(path: Path) -> dict[str, Artifact]:
    """The parts as if they were read one by one, but of the latents the moments alone, and of the samples no tensor."""
    file = artifacts.load(path, "model")

    def part(kind: str) -> Artifact:
        tensors = {name.removeprefix(f"{kind}."): x for name, x in file.tensors.items() if name.startswith(f"{kind}.")}
        before = {name: sha for name, sha in file.lineage.items() if name != kind}
        return Artifact(path, kind, tensors, dict(file.config[kind]), before, file.lineage[kind])

    wanted = ("denoiser", "guide", "latents", "samples", *(["vae"] if "vae" in file.config else []))
    parts = file.build(lambda _: {kind: part(kind) for kind in wanted})
    parts["latents"].check_tensors(dict.fromkeys(MOMENTS, ("torch.float64", (None,))))
    return parts
