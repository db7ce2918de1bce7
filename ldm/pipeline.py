"""The trained pipeline from Python: load the artifacts and sample digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ldm import artifacts, autoencoder, choices
from ldm.denoiser import Guided
from ldm.errors import InputError
from ldm.latents import Standardiser
from ldm.sampling import Streams, last_state, states

Choice: TypeAlias = str | Mapping[str, Mapping[str, Any]] | None


@dataclass(frozen=True)
class Pipeline:
    """A denoiser, the autoencoder whose latents it was trained on, and how to sample."""

    denoiser: Guided
    vae: autoencoder.Autoencoder
    standardiser: Standardiser
    shape: tuple[int, ...]  # of a latent, (c, h, w)
    sampling: Mapping[str, Any]  # a plain `sample` section: sampler, spacing and steps
    device: str

    @torch.inference_mode()
    def sample(
        self, n: int, seed: int = 0, first: int = 0, *, label: int | None = None, steps: int | None = None, sampler: Choice = None, spacing: Choice = None
    ) -> Tensor:
        """n images, uint8 (n, C, H, W): those that the stages draw with this seed, from index `first` on.

        label: the class of all of them; None for the stage's, or classes drawn as often as in training.
        steps, sampler, spacing: to differ from the stage's; a choice is {name: options}, or its name, where it has no options or is the stage's own.
        Raises: InputError for an unknown name or class, bad options, or n below 1.
        """
        if n < 1:
            raise InputError(f"{n} images cannot be drawn; ask for at least 1")
        sigmas = self._build("spacing", spacing)(self.denoiser.schedule, self.sampling["steps"] if steps is None else steps)
        move = self._build("sampler", sampler)
        asked = self.sampling.get("label") if label is None else label
        images = []
        for part in torch.arange(first, first + n).split(self.sampling["batch_size"]):
            noise = Streams(seed, part.tolist(), self.shape, self.device)
            images.append(self.decode(last_state(states(self.denoiser.given_streams(noise, asked), move, sigmas, noise)).float()))
        return torch.cat(images)

    def _build(self, word: str, choice: Choice) -> Any:
        """A sampler or spacing: the one named, or the stage's."""
        recorded = self.sampling[f"{word}s"]
        ((name, options),) = (choice or recorded).items() if not isinstance(choice, str) else [(choice, recorded.get(choice, {}))]
        return choices.build(f"{word}s", name, options)

    def decode(self, x: Tensor) -> Tensor:
        """Standardised latents (n, c, h, w) → uint8 images on the CPU."""
        return autoencoder.decode_images(self.vae, self.standardiser.restore(x)).cpu()


def load(folder: str | Path, device: str = "cpu") -> Pipeline:
    """The pipeline whose artifacts lie in a folder, as `dvc repro` leaves them.

    Raises: InputError for a missing or corrupt artifact, or ones that do not belong together.
    """

    def read(kind: str) -> artifacts.Artifact:
        return artifacts.load(Path(folder) / artifacts.KINDS[kind][0] / f"{kind}.safetensors", kind)

    latents, denoiser, guide, samples = (read(kind) for kind in ("latents", "denoiser", "guide", "samples"))
    vae = read("vae") if "vae" in latents.lineage else None
    artifacts.merge_lineage([a for a in (vae, latents, denoiser, guide, samples) if a])
    return Pipeline(
        Guided.from_artifacts(denoiser, guide, device=device, **samples.config["guidance"]),
        autoencoder.from_artifact(vae).to(device),
        Standardiser.from_artifact(latents, device),
        tuple(denoiser.config["shape"]),
        samples.config,
        device,
    )
