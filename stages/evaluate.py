"""Fréchet distances of five sets of images to the training and to the test images, one file a row.

fid: against the training images' features; its floor is the row held_out (test images).
fid_test_over_floor: against the test images, over the same of random training images, so that
copies of training images score 1.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section
from stages.cli import Job, stage
from stages.progress import track

if TYPE_CHECKING:
    from torch import Tensor


class Config(Section):
    """The number of images, which is the same in every row."""

    seed: int = Field(ge=0, description="seed of the subsets and of the rows random, vae_prior and vae_reconstruction")
    n: int = Field(ge=1, description="images a row; a test split with fewer gives all it has")


def run(job: Job[Config]) -> None:
    from ldm.artifacts import merge_lineage
    from ldm.autoencoder import from_artifact
    from ldm.classifier import Classifier, in_batches
    from ldm.errors import InputError
    from ldm.frechet import frechet_distance, moments

    images, classifier, artifact, generated = (job.load(kind) for kind in ("images", "classifier", "vae", "generated"))
    merge_lineage([images, classifier, artifact, generated])
    network, vae = Classifier.from_artifact(classifier).to(job.device), from_artifact(artifact).to(job.device)
    train, test, made = images["train_images"], images["test_images"], generated["images"]
    n = min(job.config.n, len(test))
    if len(made) < n or len(train) < n:
        raise InputError(f"{n} images a row are wanted, but {len(made)} are generated and {len(train)} are for training; lower evaluate.n or raise sample.n")

    def gaussian(what: Tensor, name: str):
        return moments(in_batches(network.features, what.to(job.device)).cpu().numpy(), name)

    rows = rows_of(train, test, made, vae, n, job.config.seed, job.device)
    fitted = {name: gaussian(rows[name], name) for name in track(rows, len(rows), "row", job.name, lambda _: 1)}
    all_train, all_test = gaussian(train, "training images"), gaussian(test, "test images")
    floor = frechet_distance(fitted["held_out"], all_train)
    floor_test = frechet_distance(gaussian(subset(train, n, job.config.seed), "training subset"), all_test)
    for name, row in fitted.items():
        fid = frechet_distance(row, all_train)
        values = {
            "data": images.config["data"],
            "n": row.n,
            "fid": fid,
            "fid_over_floor": fid / floor,
            "fid_test_over_floor": frechet_distance(row, all_test) / floor_test,
        }
        job.write(f"{name}.json", json.dumps(values, indent=1).encode())


def rows_of(train: Tensor, test: Tensor, made: Tensor, vae, n: int, seed: int, device: str) -> dict[str, Tensor]:
    """The table's rows: n uint8 images each, by the same path."""
    import torch

    from ldm.autoencoder import decode_images, encode_images
    from ldm.latents import draw
    from ldm.pixels import from_uint8, to_uint8

    generator = torch.Generator().manual_seed(seed)
    pixels = from_uint8(train)
    noise = pixels.mean() + pixels.std() * torch.randn(n, *train.shape[1:], generator=generator)
    mean, log_variance = encode_images(vae, subset(train, n, seed).to(device))
    eps = torch.randn(2, *mean.shape, generator=generator).to(device)
    return {
        "random": to_uint8(noise),
        "vae_prior": decode_images(vae, eps[0]),
        "vae_reconstruction": decode_images(vae, draw(mean, log_variance, eps[1])),
        "diffusion": subset(made, n, seed),
        "held_out": subset(test, n, seed),
    }


def subset(images: Tensor, n: int, seed: int) -> Tensor:
    """n images drawn at random without replacement; all of them, in their order, when there are n."""
    import torch

    if len(images) == n:
        return images
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:n]]


main = stage("evaluate", Config, run, __doc__)

if __name__ == "__main__":
    main()
