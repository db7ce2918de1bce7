"""The trained pipeline from Python: load the artifacts and sample digits."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm import artifacts, autoencoder, choices
from ldm.denoiser import Denoiser
from ldm.latents import Standardiser
from ldm.sampling import Streams, states


@dataclass(frozen=True)
class Pipeline:
    """A denoiser, the autoencoder whose latents it was trained on, and how to sample."""

    denoiser: Denoiser
    vae: autoencoder.Autoencoder
    standardiser: Standardiser
    shape: tuple[int, ...]  # of a latent, (c, h, w)
    sampling: Mapping[str, Any]  # a plain `sample` section: sampler, spacing and steps
    device: str

    @torch.inference_mode()
    def sample(self, n: int, seed: int = 0, first: int = 0, **sampling: Any) -> Tensor:
        """n images, uint8 (n, C, H, W): those that the stages draw with this seed, from index `first` on.

        sampling: `steps`, `sampler` or `spacing`, to differ from the stage's choice.
        Raises: InputError for an unknown name, or one without options in the recorded section.
        """
        config = {**self.sampling, **sampling}
        sampler, spacing = (choices.build(f"{word}s", config[word], config[f"{word}s"].get(config[word], {})) for word in ("sampler", "spacing"))
        sigmas = spacing(self.denoiser.schedule, config["steps"]).to(self.device)
        noise = Streams(seed, range(first, first + n), self.shape, self.device)
        return self.decode(deque(states(self.denoiser, sampler, sigmas, noise), maxlen=1).pop().float())

    def decode(self, x: Tensor) -> Tensor:
        """Standardised latents (n, c, h, w) → uint8 images on the CPU."""
        return autoencoder.decode_images(self.vae, self.standardiser.restore(x)).cpu()


def load(folder: str | Path, device: str = "cpu") -> Pipeline:
    """The pipeline whose artifacts lie in a folder, as `dvc repro` leaves them.

    Raises: InputError for a missing or corrupt artifact, or ones that do not belong together.
    """

    def read(kind: str) -> artifacts.Artifact:
        return artifacts.load(Path(folder) / artifacts.KINDS[kind][0] / f"{kind}.safetensors", kind)

    vae, latents, denoiser, samples = (read(kind) for kind in ("vae", "latents", "denoiser", "samples"))
    artifacts.merge_lineage([vae, latents, denoiser, samples])
    model = Denoiser.from_artifact(denoiser)
    model.network.to(device)
    return Pipeline(
        model,
        autoencoder.from_artifact(vae).to(device),
        Standardiser.from_artifact(latents, device),
        tuple(denoiser.config["shape"]),
        samples.config,
        device,
    )
