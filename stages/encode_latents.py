"""Encode all images: posterior mean and log-variance, and the moments that standardise the draws.

Without an autoencoder among the inputs the latents are the images themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ldm.config import Section
from stages.cli import Job, stage

if TYPE_CHECKING:
    from torch import Tensor


class Config(Section):
    """What training is given of the posteriors."""

    batch_size: int = Field(ge=1, description="images encoded at once")
    draws: Literal["fresh", "once"] = Field(description="fresh: the posteriors, from which training draws each step; once: one draw, for good")
    seed: int = Field(ge=0, lt=2**63, description="seed of that one draw")


def run(job: Job[Config]) -> None:
    import torch

    from ldm.autoencoder import Pixels, encode_images, from_artifact
    from ldm.latents import Standardiser, draw

    config, inputs = job.config, job.load_all()
    vae, images = from_artifact(inputs.get("vae")).to(job.device), inputs["images"]
    generator = torch.Generator().manual_seed(config.seed)
    tensors: dict[str, Tensor] = {}
    for split in ("train", "validation", "test"):
        mean, log_variance = (x.cpu() for x in encode_images(vae, images[f"{split}_images"].to(job.device), config.batch_size))
        if config.draws == "once":
            mean, log_variance = Pixels().encode(draw(mean, log_variance, torch.randn(mean.shape, generator=generator)))
        tensors |= {f"{split}_mean": mean, f"{split}_log_variance": log_variance}
    moments = Standardiser.fit(tensors["train_mean"], tensors["train_log_variance"])
    job.save("latents", tensors | {"channel_mean": moments.mean, "channel_std": moments.std}, list(inputs.values()))


main = stage("encode_latents", Config, run, __doc__)

if __name__ == "__main__":
    main()
