"""The trained model as one object: load the pipeline's artifacts, sample and decode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ldm import artifacts
from ldm.config import Registry
from ldm.errors import InputError
from ldm.networks import autoencoder
from ldm.networks.latents import Standardiser
from ldm.sampling.guidance import Guided
from ldm.sampling.levels import spacings
from ldm.sampling.reverse import sample_batches
from ldm.sampling.samplers import samplers

Choice: TypeAlias = str | Mapping[str, Mapping[str, Any]] | None


@dataclass(frozen=True)
class Model:
    """A denoiser, the autoencoder whose latents it was trained on, and how to sample."""

    denoiser: Guided
    vae: autoencoder.Autoencoder
    standardiser: Standardiser
    shape: tuple[int, ...]  # of a latent, (c, h, w)
    sampling: Mapping[str, Any]  # a resolved `sample` section: sampler, spacing and steps
    device: str

    @torch.inference_mode()
    def sample(
        self,
        n: int,
        seed: int = 0,
        first: int = 0,
        *,
        label: int | None = None,
        steps: int | None = None,
        sampler: Choice = None,
        spacing: Choice = None,
    ) -> Tensor:
        """n images, uint8 (n, C, H, W): those that the stages draw with this seed, from index `first` on.

        label: the class of all of them; None: that of the stage, or classes drawn as often as in training. steps,
        sampler, spacing: what differs from the stage; a choice is its name, or {name: options}. Raises: InputError for
        an unknown name or class, bad options, or n below 1.
        """
        if n < 1:
            raise InputError(f"{n} images cannot be drawn; ask for at least 1")
        steps = self.sampling["steps"] if steps is None else steps
        batches = sample_batches(
            self.denoiser,
            self._build(samplers, "sampler", sampler),
            self._build(spacings, "spacing", spacing)(self.denoiser.schedule, steps),
            self.shape,
            [part.tolist() for part in torch.arange(first, first + n).split(self.sampling["batch_size"])],
            seed=seed,
            label=self.sampling.get("label") if label is None else label,
            device=self.device,
        )
        return torch.cat([self.decode(batch.x) for batch in batches])

    def decode(self, x: Tensor) -> Tensor:
        """Standardised latents (n, c, h, w) → uint8 images on the CPU."""
        return autoencoder.decode_images(self.vae, self.standardiser.unstandardise(x)).cpu()

    def _build(self, registry: Registry[Any], word: str, choice: Choice) -> Any:
        """The choice asked for, or that of the stage, whose options also serve its name alone."""
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
        return artifacts.load(Path(folder) / artifacts.KINDS[kind][0] / f"{kind}.safetensors", kind)

    latents, denoiser, guide, samples = (read(kind) for kind in ("latents", "denoiser", "guide", "samples"))
    vae = read("vae") if "vae" in latents.lineage else None
    artifacts.merge_lineage([a for a in (vae, latents, denoiser, guide, samples) if a])
    return Model(
        Guided.from_artifacts(denoiser, guide, device=device, **samples.config["guidance"]),
        autoencoder.from_artifact(vae, device),
        Standardiser.from_artifact(latents, device),
        tuple(denoiser.config["shape"]),
        samples.config,
        device,
    )
