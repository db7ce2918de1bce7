"""Score sets of images against the training and the test images, one file a row, and write the table.

fid: Fréchet distance to the training images' features; its floor is the row held_out (test images).
fid_test_over_floor: to the test images, over the same of random training images, so that
copies of training images score 1. fid_second: in the features of the classifier that nothing was
chosen by. KID, precision, recall, density and coverage compare with n random training images,
of which vae_reconstruction reconstructs none; label_tv with all training labels. fid_infinity is left out
of that row, which is not independent of the training images. The rows are those whose files dvc.yaml lists.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from ldm.config import Section
from ldm.errors import InputError
from stages.cli import Job, stage
from stages.progress import track

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ldm.artifacts import Artifact
    from ldm.autoencoder import Autoencoder
    from ldm.classifier import Classifier
    from ldm.frechet import Moments
    from ldm.quality import Manifold


ROWS = ["random", "vae_prior", "vae_reconstruction", "diffusion", "held_out"]


class Config(Section):
    """The number of images, which is the same in every row, and the settings of the measures."""

    seed: int = Field(ge=0, lt=2**63, description="seed of the subsets, the resamples and the rows random, vae_prior and vae_reconstruction")
    n: int = Field(ge=1, description="images a row; a test split with fewer gives all it has")
    resamples: int = Field(ge=2, description="bootstrap resamples for the spread of the distance")
    points: int = Field(ge=2, description="sizes from which the distance is extrapolated to infinitely many images")
    kid_subsets: int = Field(ge=2, description="subsets of KID")
    kid_size: int = Field(ge=2, description="images a subset of KID (1,000 in the paper)")
    neighbours: int = Field(ge=1, description="k of precision, recall, density and coverage")


def run(job: Job[Config]) -> None:
    from ldm.autoencoder import from_artifact
    from ldm.quality import Manifold, subset

    config, inputs = job.config, job.load_all()
    images, real = inputs["images"], inputs["features"]
    vae = from_artifact(inputs["vae"]).to(job.device) if "vae" in inputs else None
    train, made = images["train_images"], inputs["generated"]["images"]
    n = min(config.n, len(images["test_images"]))
    label = inputs["generated"].config.get("label")
    if label is not None:
        raise InputError(f"the generated images are all of class {label}, but they are compared with all classes; set sample.label to null")
    if len(made) < n or len(train) < n:
        raise InputError(f"{n} images a row are wanted, but {len(made)} are generated and {len(train)} are for training; lower evaluate.n or raise sample.n")
    first, second = Space.fit(job, inputs, "", n), Space.fit(job, inputs, "_second", n)
    manifold = Manifold.fit(subset(real["train"], n, config.seed).numpy(), config.neighbours)
    rows = [name for name in ROWS if f"{name}.json" in job.outputs]
    table: dict[str, dict[str, Any]] = {}
    for name in track(rows, len(rows), "row", job.name, lambda _: 1):
        if name == "held_out":
            features, in_second = first.held_out, second.held_out
        else:
            row = draw_row(name, train, made, vae, n, config.seed)
            features, in_second = (space.features(row, job.device) for space in (first, second))
        fid, ratio, ratio_test = first.distances(features, name)
        fid_second, ratio_second, _ = second.distances(in_second, name)
        values = {"data": images.config["data"], "n": n, "fid": fid, "fid_over_floor": ratio, "fid_test_over_floor": ratio_test}
        values |= {"fid_second": fid_second, "fid_second_over_floor": ratio_second}
        values |= measures(name, features, first, images["train_labels"].numpy(), manifold, config)
        table[name] = values
    files = {f"{name}.json": json.dumps(values, indent=1).encode() for name, values in table.items()}
    for file, content in (files | {"table.md": markdown(table).encode(), "table.png": figure(table)}).items():
        if file in job.outputs:
            job.write(file, content)


class Space(NamedTuple):
    """The features of one classifier, and what the distances in them are measured by."""

    classifier: Classifier
    train: Moments
    test: Moments
    held_out: np.ndarray  # features of n test images, (n, d)
    floor: float  # FID of the held-out images, to the training images
    floor_test: float  # FID of n random training images, to the test images

    @classmethod
    def fit(cls, job: Job[Config], inputs: dict[str, Artifact], suffix: str, n: int) -> Space:
        """suffix: that of the names in the artifact `features`."""
        from ldm.classifier import Classifier
        from ldm.frechet import frechet_distance, moments
        from ldm.quality import subset

        classifier = Classifier.from_artifact(inputs["second_classifier" if suffix else "classifier"]).to(job.device)
        train, test = (inputs["features"][f"{split}{suffix}"] for split in ("train", "test"))
        held_out, copies = (subset(x, n, job.config.seed).numpy() for x in (test, train))
        all_train, all_test = moments(train.numpy(), "training images"), moments(test.numpy(), "test images")
        floors = frechet_distance(moments(held_out, "held_out"), all_train), frechet_distance(moments(copies, "training subset"), all_test)
        return cls(classifier, all_train, all_test, held_out, *floors)

    def features(self, images: Tensor, device: str) -> np.ndarray:
        from ldm.classifier import in_batches

        return in_batches(self.classifier.features, images.to(device)).cpu().numpy()

    def distances(self, features: np.ndarray, name: str) -> tuple[float, float, float]:
        """FID to the training images, that over its floor, and FID to the test images over its own."""
        from ldm.frechet import frechet_distance, moments

        fitted = moments(features, name)
        fid = frechet_distance(fitted, self.train)
        return fid, fid / self.floor, frechet_distance(fitted, self.test) / self.floor_test


def measures(name: str, features: np.ndarray, space: Space, labels: np.ndarray, real: Manifold, config: Config) -> dict[str, float | None]:
    """What a row says beside the ratios; no extrapolation from fewer than four samples a feature, or from reconstructions."""
    import numpy as np
    import torch

    from ldm import frechet, quality

    rng = np.random.default_rng([config.seed, ROWS.index(name)])
    extrapolate = len(features) >= 4 * features.shape[1] and name != "vae_reconstruction"
    with torch.inference_mode():
        logits = space.classifier.logits(torch.from_numpy(features).to(space.classifier.logits.weight.device))
    kid, kid_std = quality.kernel_distance(features, real.features, config.kid_subsets, config.kid_size, rng)
    return {
        "fid_spread": frechet.bootstrap_spread(features, space.train, config.resamples, rng),
        "fid_infinity": frechet.frechet_at_infinity(features, space.train, config.points, rng) if extrapolate else None,
        "kid": kid,
        "kid_std": kid_std,
        **quality.precision_recall(real, quality.Manifold.fit(features, config.neighbours)),
        **quality.label_statistics(logits.softmax(1).cpu().numpy(), labels),
    }


def markdown(table: dict[str, dict[str, Any]]) -> str:
    """The table, one line a row, numbers to four digits."""
    keys = list(next(iter(table.values())))
    lines = [["images", *keys], ["---"] * (len(keys) + 1)]
    lines += [[name, *map(_cell, row.values())] for name, row in table.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def figure(table: dict[str, dict[str, Any]]) -> bytes:
    """PNG: the table, one column a row, for the page of `dvc plots show`."""
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    from stages.figures import png_of

    keys = list(next(iter(table.values())))
    cells = [[_cell(row[key]) for row in table.values()] for key in keys]
    picture = Figure(figsize=(1.4 * len(table) + 2, 0.28 * len(keys) + 0.4), layout="constrained")
    ax = picture.add_subplot()
    ax.axis("off")
    ax.table(cells, rowLabels=keys, colLabels=list(table), loc="center", cellLoc="right", bbox=Bbox.from_bounds(0.2, 0, 0.8, 1))
    return png_of(picture)


def draw_row(name: str, train: Tensor, made: Tensor, vae: Autoencoder | None, n: int, seed: int) -> Tensor:
    """The images of a row, uint8 (n, C, H, W), all by the same path. Raises: InputError for an autoencoder's row without one."""
    import torch

    from ldm.autoencoder import decode_images, encode_images
    from ldm.latents import draw
    from ldm.pixels import from_uint8, to_uint8
    from ldm.quality import subset

    generator = torch.Generator().manual_seed(seed + ROWS.index(name))
    if name == "random":
        pixels = from_uint8(train)
        return to_uint8(pixels.mean() + pixels.std() * torch.randn(n, *train.shape[1:], generator=generator))
    if name == "diffusion":
        return subset(made, n, seed)
    if vae is None:
        raise InputError(f"the row {name} needs an autoencoder; take {name}.json out of the outputs in dvc.yaml")
    device = next(vae.parameters()).device
    originals = subset(train, n, seed, part=1)  # not those of part 0, which the row is compared with
    mean, log_variance = encode_images(vae, originals.to(device))
    eps = torch.randn(mean.shape, generator=generator).to(device)
    return decode_images(vae, eps if name == "vae_prior" else draw(mean, log_variance, eps))


main = stage("evaluate", Config, run, __doc__)

if __name__ == "__main__":
    main()
