"""Score sets of images against the training and the test images, one file per row, and write the table.

\b
fid                   Fréchet distance to the training images' features; its floor is the row test_images
fid_over_floor        fid over that of the test images: 1 is as close to the training images as test images are
fid_test_over_floor   distance to the test images, over the same of random training images: copies of these score 1
fid_second            fid in the features of the second classifier, by which nothing was chosen
fid_spread            bootstrap deviation of fid
fid_infinity          fid extrapolated to infinitely many images; not of reconstructions, made of training images
kid                   kernel distance to n random training images, none of which the row vae_reconstruction reconstructs
precision, recall     share of images near the real ones, and of real images near them; density and coverage likewise
confidence            the classifier's mean confidence
label_tv              total-variation distance of the predicted labels to all training labels

The rows are those whose files dvc.yaml lists.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from ldm import Artifact, Count, InputError, Section, Seed, Several, from_uint8, metrics, networks, to_uint8
from ldm.lazy import Tensor, torch
from stages.runner import Run, new_figure, png_of, stage, track

Features = np.ndarray
DISTANCES = ("fid", "fid_over_floor", "fid_test_over_floor", "fid_second", "fid_second_over_floor")
ROWS = ["random", "vae_prior", "vae_reconstruction", "diffusion", "test_images"]


class Config(Section):
    """The number of images, which is the same in every row, and the settings of the measures.

    seed: seed of the subsets, the resamples and the rows random, vae_prior and vae_reconstruction
    n: images per row; a test split with fewer gives all it has
    resamples: bootstrap resamples for the spread of the distance
    points: sizes from which the distance is extrapolated to infinitely many images
    kid_subsets: subsets of KID
    kid_size: images in a subset of KID
    neighbours: k of precision, recall, density and coverage
    """

    seed: Seed
    n: Count
    resamples: Several = 20
    points: Several = 15
    kid_subsets: Several = 20
    kid_size: Several = 1000
    neighbours: Count = 5


def compute(run: Run[Config]) -> None:
    config, inputs = run.config, run.load_all()
    images, real = inputs["images"], inputs["features"]
    vae = networks.autoencoder.from_artifact(inputs["vae"], run.device) if "vae" in inputs else None
    train, generated = images["train_images"], inputs["generated"]["images"]
    n = min(config.n, len(images["test_images"]))
    label = inputs["generated"].config.get("label")
    if label is not None:
        raise InputError(f"the generated images are all of class {label}, the others are not; set sample.label to null")
    if len(generated) < n or len(train) < n:
        raise InputError(f"{n} images per row: {len(generated)} are generated; lower evaluate.n or raise sample.n")
    first, second = (FeatureSpace.fit(run, inputs, suffix, n) for suffix in ("", "_second"))
    subset = metrics.quality.subset(real["train"], n, config.seed).numpy()
    manifold = metrics.quality.Manifold.fit(subset, config.neighbours)
    rows = [name for name in ROWS if f"{name}.json" in run.outputs]
    table: dict[str, dict[str, Any]] = {}
    for name in track(rows, len(rows), "row", run.name, lambda _: 1):
        if name == "test_images":
            features, in_second = first.test_subset, second.test_subset
        else:
            row = draw_row(name, train, generated, vae, n, config.seed)
            features, in_second = (space.features(row, run.device) for space in (first, second))
        distances = *first.distances(features, name), *second.distances(in_second, name)[:2]
        measured = measures(name, features, first, images["train_labels"].numpy(), manifold, config)
        table[name] = {"data": images.config["data"], "n": n} | dict(zip(DISTANCES, distances, strict=True)) | measured
    files = {f"{name}.json": json.dumps(values, indent=1).encode() for name, values in table.items()}
    for file, content in (files | {"table.md": markdown(table).encode(), "table.png": figure(table)}).items():
        if file in run.outputs:
            run.write(file, content)


class FeatureSpace(NamedTuple):
    """The features of one classifier, and what the distances in them are measured by."""

    classifier: networks.classifier.Classifier
    train: metrics.frechet.Moments
    test: metrics.frechet.Moments
    test_subset: Features  # features of n test images, (n, d)
    floor: float  # FID of the test images, to the training images
    floor_test: float  # FID of n random training images, to the test images

    @classmethod
    def fit(cls, run: Run[Config], inputs: dict[str, Artifact], suffix: str, n: int) -> FeatureSpace:
        """suffix: that of the names in the artifact `features`."""
        artifact = inputs["second_classifier" if suffix else "classifier"]
        classifier = networks.classifier.Classifier.from_artifact(artifact, run.device)
        distance, moments = metrics.frechet.frechet_distance, metrics.frechet.moments
        train, test = (inputs["features"][f"{split}{suffix}"] for split in ("train", "test"))
        test_subset, copies = (metrics.quality.subset(x, n, run.config.seed).numpy() for x in (test, train))
        of_train, of_test = moments(train.numpy(), "training images"), moments(test.numpy(), "test images")
        floor = distance(moments(test_subset, "test_images"), of_train)
        floor_test = distance(moments(copies, "training subset"), of_test)
        return cls(classifier, of_train, of_test, test_subset, floor, floor_test)

    def features(self, images: Tensor, device: str) -> Features:
        return networks.classifier.in_batches(self.classifier.features, images.to(device)).cpu().numpy()

    def distances(self, features: Features, name: str) -> tuple[float, float, float]:
        """FID to the training images, that over its floor, and FID to the test images over its own."""
        distance, fitted = metrics.frechet.frechet_distance, metrics.frechet.moments(features, name)
        fid = distance(fitted, self.train)
        return fid, fid / self.floor, distance(fitted, self.test) / self.floor_test


def measures(
    name: str, features: Features, space: FeatureSpace, labels: Features, real: metrics.quality.Manifold, config: Config
) -> dict[str, float | None]:
    """What a row says beside the ratios; no extrapolation from too few samples, nor from reconstructions."""
    rng = np.random.default_rng([config.seed, ROWS.index(name)])
    extrapolate = len(features) >= 4 * features.shape[1] and name != "vae_reconstruction"
    with torch.inference_mode():
        logits = space.classifier.logits(torch.from_numpy(features).to(space.classifier.logits.weight.device))
    quality, frechet = metrics.quality, metrics.frechet
    kid, kid_std = quality.kernel_distance(features, real.features, config.kid_subsets, config.kid_size, rng)
    spread = frechet.bootstrap_spread(features, space.train, config.resamples, rng)
    infinity = frechet.frechet_at_infinity(features, space.train, config.points, rng) if extrapolate else None
    kernel = {"kid": kid, "kid_std": kid_std}
    neighbours = quality.precision_recall(real, quality.Manifold.fit(features, config.neighbours))
    predicted = quality.label_statistics(logits.softmax(1).cpu().numpy(), labels)
    return {"fid_spread": spread, "fid_infinity": infinity} | kernel | neighbours | predicted


def markdown(table: dict[str, dict[str, Any]]) -> str:
    """The table, one line per row, numbers to four digits."""
    keys = list(next(iter(table.values())))
    lines = [["images", *keys], ["---"] * (len(keys) + 1)]
    lines += [[name, *map(_cell, row.values())] for name, row in table.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def figure(table: dict[str, dict[str, Any]]) -> bytes:
    """PNG: the table, one column per row, for the page of `dvc plots show`."""
    keys = list(next(iter(table.values())))
    cells = [[_cell(row[key]) for row in table.values()] for key in keys]
    picture = new_figure(1.4 * len(table) + 2, 0.28 * len(keys) + 0.4)
    ax = picture.add_subplot()
    ax.axis("off")
    box = [0.2, 0, 0.8, 1]  # left, bottom, width, height
    ax.table(cells, rowLabels=keys, colLabels=list(table), loc="center", cellLoc="right", bbox=box)
    return png_of(picture)


def draw_row(
    name: str, train: Tensor, generated: Tensor, vae: networks.autoencoder.Autoencoder | None, n: int, seed: int
) -> Tensor:
    """The images of a row, uint8 (n, C, H, W). Raises: InputError for an autoencoder's row without one."""
    generator = torch.Generator().manual_seed(seed + ROWS.index(name))
    if name == "random":
        pixels = from_uint8(train)
        return to_uint8(pixels.mean() + pixels.std() * torch.randn(n, *train.shape[1:], generator=generator))
    if name == "diffusion":
        return metrics.quality.subset(generated, n, seed)
    if vae is None:
        raise InputError(f"the row {name} needs an autoencoder; take {name}.json out of the outputs in dvc.yaml")
    device = next(vae.parameters()).device
    # not the images of part 0, which the row is compared with
    originals = metrics.quality.subset(train, n, seed, part=1)
    posterior = networks.autoencoder.encode_images(vae, originals.to(device))
    eps = torch.randn(posterior.mean.shape, generator=generator).to(device)
    return networks.autoencoder.decode_images(vae, eps if name == "vae_prior" else posterior.draw(eps))


main = stage("evaluate", Config, compute, __doc__)

if __name__ == "__main__":
    main()
