"""The trained model as one object: load the pipeline's artifacts, sample and decode."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm import artifacts
from ldm.config import Registry
from ldm.errors import InputError
from ldm.networks.autoencoder import Decoder
from ldm.sampling import Guided, sample_batches, samplers, spacings, split_range

Choice = str | Mapping[str, Mapping[str, Any]] | None


@dataclass(frozen=True)
class Model:
    """A guided denoiser, the decoder of the latents it was trained on, and how to sample."""

    denoiser: Guided
    decoder: Decoder
    sampling: Mapping[str, Any]  # the resolved section of the stage `sample`: its sampler, spacing, steps and so on

    @torch.inference_mode()
    def sample(
        self,
        n: int,
        seed: int = 0,
        first: int = 0,
        *,
        label: str | int | None = None,
        steps: int | None = None,
        sampler: Choice = None,
        spacing: Choice = None,
    ) -> Tensor:
        """Draw n images, uint8 (n, C, H, W): the ones that the stages draw with this seed, from index `first` on.

        label: the class of all of them, by its name or its index; None takes that of the stage `sample`, and where it
        has none, each class by its quota. steps, sampler, spacing: None takes those of the stage `sample`; a sampler or
        spacing is its name, or {name: options}. Raises: InputError for an unknown name or class, bad options, or n
        below 1.
        """
        if n < 1:
            raise InputError(f"{n} images cannot be drawn; ask for at least 1")
        label = self.sampling.get("label") if label is None else label
        steps = self.sampling["steps"] if steps is None else steps
        sigmas = self._build(spacings, "spacing", spacing)(self.denoiser.schedule, steps)
        batches = split_range(first, n, self.sampling["batch_size"])
        move = self._build(samplers, "sampler", sampler)
        precision = self.sampling.get("precision", "fp32")
        drawn = sample_batches(self.denoiser, move, sigmas, batches, seed=seed, label=label, precision=precision)
        return torch.cat([self.decoder(batch.x) for batch in drawn])

    def _build(self, registry: Registry[Any], word: str, choice: Choice) -> Any:
        """The choice asked for, or else that of the stage `sample`, whose options also serve a name without options."""
        recorded = self.sampling[registry.name]
        if choice is None or isinstance(choice, str):
            name = choice or self.sampling[word]
            return registry.build(name, recorded.get(name))
        ((name, options),) = choice.items()
        return registry.build(name, options)


def load(folder: str | Path, device: str = "cpu") -> Model:
    """The model whose artifacts lie in a folder, as `dvc repro` leaves them.

    Raises: InputError for a missing or corrupt artifact, or ones that do not belong together.
    """

    def read(kind: str) -> artifacts.Artifact:
        return artifacts.load(Path(folder) / artifacts.STAGES[kind] / f"{kind}.safetensors", kind)

    latents, denoiser, guide, samples = (read(kind) for kind in ("latents", "denoiser", "guide", "samples"))
    vae = read("vae") if "vae" in latents.lineage else None
    artifacts.merge_lineage([a for a in (vae, latents, denoiser, guide, samples) if a])
    guided = Guided.from_artifacts(denoiser, guide, device=device, **samples.config["guidance"])
    return Model(guided, Decoder.from_artifacts(latents, vae, device), samples.config)
