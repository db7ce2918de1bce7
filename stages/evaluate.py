"""Score five sets of images against the training and the test images, one file a row, and write the table.

fid: Fréchet distance to the training images' features; its floor is the row held_out (test images).
fid_test_over_floor: to the test images, over the same of random training images, so that
copies of training images score 1. The other measures compare with n random training images.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ldm.config import Section
from stages.cli import Job, stage
from stages.progress import track

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ldm.frechet import Moments
    from ldm.quality import Manifold


class Config(Section):
    """The number of images, which is the same in every row, and the settings of the measures."""

    seed: int = Field(ge=0, description="seed of the subsets, the resamples and the rows random, vae_prior and vae_reconstruction")
    n: int = Field(ge=1, description="images a row; a test split with fewer gives all it has")
    resamples: int = Field(ge=2, description="bootstrap resamples for the spread of the distance")
    points: int = Field(ge=2, description="sizes from which the distance is extrapolated to infinitely many images")
    kid_subsets: int = Field(ge=2, description="subsets of KID")
    kid_size: int = Field(ge=2, description="images a subset of KID (1,000 in the paper)")
    neighbours: int = Field(ge=1, description="k of precision, recall, density and coverage")


def run(job: Job[Config]) -> None:
    import numpy as np
    import torch

    from ldm.artifacts import merge_lineage
    from ldm.autoencoder import from_artifact
    from ldm.classifier import Classifier, in_batches
    from ldm.errors import InputError
    from ldm.frechet import frechet_distance, moments
    from ldm.quality import Manifold

    config = job.config
    images, classifier, artifact, generated = (job.load(kind) for kind in ("images", "classifier", "vae", "generated"))
    merge_lineage([images, classifier, artifact, generated])
    network, vae = Classifier.from_artifact(classifier).to(job.device), from_artifact(artifact).to(job.device)
    train, test, made = images["train_images"], images["test_images"], generated["images"]
    n = min(config.n, len(test))
    if len(made) < n or len(train) < n:
        raise InputError(f"{n} images a row are wanted, but {len(made)} are generated and {len(train)} are for training; lower evaluate.n or raise sample.n")

    def features(what: Tensor) -> np.ndarray:
        return in_batches(network.features, what.to(job.device)).cpu().numpy()

    rows = rows_of(train, test, made, vae, n, config.seed, job.device)
    labels, all_train, all_test = images["train_labels"].numpy(), moments(features(train), "training images"), moments(features(test), "test images")
    of_training = features(subset(train, n, config.seed))
    real, floor_test = Manifold.fit(of_training, config.neighbours), frechet_distance(moments(of_training, "training subset"), all_test)
    floor = frechet_distance(moments(features(rows["held_out"]), "held_out"), all_train)
    table = {}
    for i, name in enumerate(track(rows, len(rows), "row", job.name, lambda _: 1)):
        of_row = features(rows[name])
        fitted = moments(of_row, name)
        fid = frechet_distance(fitted, all_train)
        values: dict[str, Any] = {
            "data": images.config["data"],
            "n": fitted.n,
            "fid": fid,
            "fid_over_floor": fid / floor,
            "fid_test_over_floor": frechet_distance(fitted, all_test) / floor_test,
        }
        with torch.inference_mode():
            probabilities = network.logits(torch.from_numpy(of_row).to(job.device)).softmax(1).cpu().numpy()
        values |= measures(of_row, probabilities, labels, all_train, real, config, np.random.default_rng([config.seed, i]))
        job.write(f"{name}.json", json.dumps(values, indent=1).encode())
        table[name] = values
    job.write("table.md", markdown(table).encode())


def measures(
    features: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, reference: Moments, real: Manifold, config: Config, rng: np.random.Generator
) -> dict[str, float]:
    """What a row says beside the ratios."""
    from ldm import frechet, quality

    kid, kid_std = quality.kernel_distance(features, real.features, config.kid_subsets, config.kid_size, rng)
    return {
        "fid_spread": frechet.bootstrap_spread(features, reference, config.resamples, rng),
        "fid_infinity": frechet.frechet_at_infinity(features, reference, config.points, rng),
        "kid": kid,
        "kid_std": kid_std,
        **quality.precision_recall(real, quality.Manifold.fit(features, config.neighbours)),
        **quality.label_statistics(probabilities, labels),
    }


def markdown(table: dict[str, dict[str, Any]]) -> str:
    """The table, one line a row, numbers to four digits."""
    keys = list(next(iter(table.values())))
    lines = [["images", *keys], ["---"] * (len(keys) + 1)]
    lines += [[name, *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())] for name, row in table.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


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
