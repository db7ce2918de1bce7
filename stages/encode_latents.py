"""Encode all images: posterior mean and log-variance, and the moments that standardise the draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section
from stages.cli import Job, stage

if TYPE_CHECKING:
    from torch import Tensor


class Config(Section):
    """How to run; nothing here changes the result beyond rounding."""

    batch_size: int = Field(ge=1, description="images encoded at once")


def run(job: Job[Config]) -> None:
    from ldm.artifacts import merge_lineage
    from ldm.autoencoder import encode_images, from_artifact
    from ldm.latents import Standardiser

    images, artifact = job.load("images"), job.load("vae")
    merge_lineage([images, artifact])
    vae = from_artifact(artifact).to(job.device)
    tensors: dict[str, Tensor] = {}
    for split in ("train", "validation", "test"):
        mean, log_variance = encode_images(vae, images[f"{split}_images"].to(job.device), job.config.batch_size)
        tensors |= {f"{split}_mean": mean.cpu(), f"{split}_log_variance": log_variance.cpu()}
    moments = Standardiser.fit(tensors["train_mean"], tensors["train_log_variance"])
    job.save("latents", tensors | {"channel_mean": moments.mean, "channel_std": moments.std}, [images, artifact])


main = stage("encode_latents", Config, run, __doc__)

if __name__ == "__main__":
    main()
