"""Score sets of images against real ones: one file of chief measures per row, and a table of all of them.

\b
fid                       Fréchet distance of the row's features to those of all training images
fid_test, fid_val         fid over that of as many test images, or validation images: 1 is as close as these are
…_std                     standard deviation of a ratio over bootstrap resamples of the row and of the real images
…_real_std                the same over those of the real images alone
second_test, second_val   as fid_test and fid_val, in the features of the second classifier, which no choice has used
within_test, within_val   the ratio within each class, in the mean over the classes
worst_test, worst_val     the largest of these, with its class
copies                    distance to the test images, over the same of random training images: copies of these score 1
agree, agree_second       share of the images that the first, or second, classifier calls by the class asked for
precision, recall         share of images near real ones, and of real images near them; density and coverage likewise
label_tv                  total-variation distance of the classes that the classifier sees to those of training

The rows are those whose files dvc.yaml lists. The classes of samples follow the training images' shares by quota, for
which the distances are smaller than for classes drawn by chance; those within classes cannot gain by it. What a row has
no classes for, or too few images, is null. Test and validation images that are equal to a training image in every pixel
are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ldm import Artifact, Count, InputError, Section, Seed, Several, duplicates, from_uint8, metrics, networks, to_uint8
from ldm.lazy import Tensor, torch
from stages.runner import Run, stage, track, warn

Measures = dict[str, Any]
Features = NDArray[np.floating]
Choice = Literal["all", "random", "vae_prior", "reconstruction", "diffusion", "test_images", "validation_images"]
ROWS = list(get_args(Choice))[1:]
# what a row's own file has, which `dvc metrics show` prints side by side
CHIEF = ["data", "n", "fid", "fid_test", "fid_val", "second_test", "within_test", "within_val", "agree", "coverage"]


class Config(Section):
    """The number of images, which is the same in every row, and the settings of the measures.

    seed: seed of the subsets, the resamples and the rows random, vae_prior and reconstruction
    n: images per row; no more than there are training images, or test images (without final, validation images)
    final: compare with the test images too; false is for making a choice by hand (--out), which sees validation images
      alone, and leaves the row test_images out
    row: the only row to score; all are those whose files dvc.yaml lists
    resamples: bootstrap resamples for the deviation of a ratio
    neighbours: k of precision, recall, density and coverage
    """

    seed: Seed
    n: Count
    final: bool = True
    row: Choice = "all"
    resamples: Several = 20
    neighbours: Count = 5


class Row(NamedTuple):
    """The images of a row, uint8 (n, C, H, W), and the class that each should be of, (n,), where there is one."""

    images: Tensor
    labels: Tensor | None


class Space(NamedTuple):
    """The features of one classifier, the training images in them, and the references by the split that is held out."""

    classifier: networks.classifier.Classifier
    train: metrics.frechet.Labelled
    references: dict[str, metrics.frechet.Reference]

    @classmethod
    def fit(cls, run: Run[Config], inputs: dict[str, Artifact], splits: dict[str, str], suffix: str) -> Space:
        """splits: short name → split. suffix: that of the names in the artifact `features`."""
        artifact = inputs["second_classifier" if suffix else "classifier"]

        def real(split: str) -> metrics.frechet.Labelled:
            pair = inputs["features"][f"{split}{suffix}"], inputs["images"][f"{split}_labels"]
            return labelled(*(metrics.quality.subset(x, len(x), run.config.seed) for x in pair))

        train, reference = real("train"), metrics.frechet.Reference
        references = {short: reference(train, real(split), f"{split} images") for short, split in splits.items()}
        return cls(networks.classifier.Classifier.from_artifact(artifact, run.device), train, references)

    def features(self, images: Tensor, device: str) -> Tensor:
        return networks.classifier.in_batches(self.classifier.features, images.to(device)).cpu()

    def classes(self, features: Tensor) -> Tensor:
        """The class that the classifier sees, (n,)."""
        with torch.inference_mode():
            weight = self.classifier.logits.weight
            return self.classifier.logits(features.to(weight.device)).argmax(1).cpu()


def labelled(features: Tensor, labels: Tensor) -> metrics.frechet.Labelled:
    return metrics.frechet.Labelled(features.numpy(), labels.numpy())


def compute(run: Run[Config]) -> None:
    config, inputs = run.config, run.load_all()
    splits = {"test": "test", "val": "validation"} if config.final else {"val": "validation"}
    inputs |= without_twins(inputs["images"], inputs["features"], splits.values())
    images, first_split = inputs["images"], next(iter(splits.values()))
    vae = networks.autoencoder.from_artifact(inputs["vae"], run.device) if "vae" in inputs else None
    generated = inputs["generated"]
    if generated["images"].shape[1:] != images["train_images"].shape[1:]:
        raise InputError(f"{generated.path} and {images.path} do not belong together: their images differ in shape")
    rows = [name for name in ROWS if (f"{name}.json" in run.outputs if config.row == "all" else name == config.row)]
    rows = [name for name in rows if config.final or name != "test_images"]
    if not rows:
        raise InputError(f"row {config.row} with final false: no row is left to score; name another row")
    n = images_per_row(config.n, images, rows, first_split)
    width = inputs["features"]["train"].shape[1]
    sizes = {f"{split} images": len(images[f"{split}_images"]) for split in ("train", *splits.values())}
    few = [f"{count} {what}" for what, count in (sizes | {"images per row": n}).items() if count <= width]
    if few:
        lost = "no Fréchet distance of them is taken, and what is taken of the others is in the table"
        warn(run.name, f"{', '.join(few)} have no covariance of {width} features, which takes {width + 1}: {lost}")
    enough = min(n, sizes["train images"]) > width
    splits = {short: split for short, split in splits.items() if enough and sizes[f"{split} images"] > width}
    label = generated.config.get("label")
    if label is not None:
        raise InputError(f"the generated images are all of class {label}, the others are not; set sample.label to null")
    if (count := len(generated["images"])) < n:
        raise InputError(f"{n} images per row: {count} are generated; lower evaluate.n or raise sample.n")
    spaces = [Space.fit(run, inputs, splits, suffix) for suffix in ("", "_second")]
    manifold = None
    if n > config.neighbours:
        manifold = metrics.quality.Manifold.fit(spaces[0].train.features[:n], config.neighbours)
    table: dict[str, Measures] = {}
    for name in track(rows, len(rows), "row", run.name):
        row = draw_row(name, images, generated, vae, n, config.seed)
        result = measures(run, name, row, spaces, manifold, images.config["class_names"])
        table[name] = {"data": images.config["data"], "n": n} | result
    chief = {f"{name}.json": {key: row[key] for key in CHIEF if key in row} for name, row in table.items()}
    for file, values in (chief | {"measures.json": table}).items():
        if file in run.outputs:
            run.write_json(file, values, digits=4)  # more would be noise
    if "table.md" in run.outputs:
        run.write("table.md", markdown(table).encode())


def images_per_row(n: int, images: Artifact, rows: Sequence[str], split: str) -> int:
    """n, or as many images as the smallest of the splits has that rows are drawn from, or compared with first."""
    drawn_from = {split, "train"} | ({"validation"} if "validation_images" in rows else set())
    return min(n, *(len(images[f"{name}_images"]) for name in drawn_from))


def without_twins(images: Artifact, features: Artifact, splits: Iterable[str]) -> dict[str, Artifact]:
    """Both artifacts, by kind, without the images of these splits that are equal to a training image in every pixel."""
    pictures, measured = images.tensors.copy(), features.tensors.copy()
    for split in splits:
        distinct = ~duplicates(images[f"{split}_images"], images["train_images"])
        for tensors, names in ((pictures, ("_images", "_labels")), (measured, ("", "_second"))):
            tensors |= {f"{split}{name}": tensors[f"{split}{name}"][distinct] for name in names}
        if count := len(distinct) - int(distinct.sum()):
            print(f"evaluate: {count} {split} images are equal to a training image, and left out")
    return {"images": replace(images, tensors=pictures), "features": replace(features, tensors=measured)}


def measures(
    run: Run[Config],
    name: str,
    row: Row,
    spaces: list[Space],
    real: metrics.quality.Manifold | None,
    class_names: Sequence[str],
) -> Measures:
    """All that is measured of a row, in the order of the table; null, with the reason said, where that fails."""
    resamples, (first, second) = run.config.resamples, spaces
    of_first, of_second = (space.features(row.images, run.device) for space in spaces)
    seen, x = first.classes(of_first), of_first.numpy()
    reasons: dict[str, list[str]] = {}  # why measures are null → their names

    def tried(key: str, measure: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return measure()
        except InputError as error:
            reasons.setdefault(str(error), []).append(key)
            return otherwise

    def within_classes(reference: metrics.frechet.Reference, labels: Tensor) -> dict[int, metrics.frechet.Ratio]:
        own = labelled(of_first, labels)
        equal = [class_names[label] for label in reference.classes if is_one_point(own.of_class(label))]
        if equal:
            raise InputError(f"all images of {', '.join(equal)} are equal, so that they have no covariance")
        return reference.within(own, name, resamples, class_names)

    nothing = metrics.frechet.Ratio(math.nan)
    any_reference = next(iter(first.references.values()), None)
    result: Measures = {"fid": tried("fid", partial(any_reference.distance, x), None) if any_reference else None}
    for prefix, space, features in (("fid", first, x), ("second", second, of_second.numpy())):
        for split, reference in space.references.items():
            key = f"{prefix}_{split}"
            result |= as_measures(key, tried(key, partial(reference.ratio, features, resamples), nothing))
    for split, reference in first.references.items():
        within: dict[int, metrics.frechet.Ratio] = {}
        if row.labels is not None:
            within = tried(f"within_{split}", partial(within_classes, reference, row.labels), within)
        ratios = np.array(list(within.values()) or np.full((1, 3), np.nan), dtype=float)  # (classes, 3)
        mean = metrics.frechet.Ratio(ratios[:, 0].mean(), *np.sqrt((ratios[:, 1:] ** 2).sum(0)) / len(ratios))
        worst = max(within, key=within.__getitem__, default=None)
        result |= as_measures(f"within_{split}", mean)
        result |= as_measures(f"worst_{split}", nothing if worst is None else within[worst])
        result[f"worst_{split}_class"] = None if worst is None else class_names[worst]
    if "test" in first.references:
        copies = partial(first.references["test"].copies, x, resamples)
        result |= as_measures("copies", tried("copies", copies, nothing))
    for key, answers in (("agree", seen), ("agree_second", second.classes(of_second))):
        result[key] = None if row.labels is None else float((answers == row.labels).double().mean())
    neighbours: Measures = dict.fromkeys(("precision", "recall", "density", "coverage"))
    if real is not None:
        neighbours = metrics.quality.precision_recall(real, metrics.quality.Manifold.fit(x, run.config.neighbours))
    classes = first.classifier.logits.out_features
    tv = metrics.quality.label_distance(seen.numpy(), first.train.labels, classes)
    for reason, keys in reasons.items():
        warn(run.name, f"{name}: null are {', '.join(keys)}, since {reason}")
    return result | neighbours | {"label_tv": tv}


def is_one_point(features: Features) -> bool:
    """Whether there are features, and all are the same."""
    return len(features) > 0 and bool((features == features[0]).all())


def as_measures(key: str, ratio: metrics.frechet.Ratio) -> Measures:
    """A ratio and its two deviations; null for what is not a number."""
    values = {key: ratio.value, f"{key}_std": ratio.std, f"{key}_real_std": ratio.real_std}
    return {name: None if value is None or np.isnan(value) else float(value) for name, value in values.items()}


def markdown(table: dict[str, Measures]) -> str:
    """The table, one line per measure and one column per row."""
    lines = [["measure", *table], ["---"] * (len(table) + 1)]
    lines += [[key, *(_cell(row[key]) for row in table.values())] for key in next(iter(table.values()))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def draw_row(
    name: str, images: Artifact, generated: Artifact, vae: networks.autoencoder.Autoencoder | None, n: int, seed: int
) -> Row:
    """The images of a row. Raises: InputError for an autoencoder's row without one."""
    generator = torch.Generator().manual_seed(seed + ROWS.index(name))
    if name == "diffusion":  # the first ones, since classes by quota have their shares in every beginning
        labels = generated.tensors.get("labels")
        if labels is not None and (unknown := set(labels.tolist()) - set(images["train_labels"].tolist())):
            raise InputError(f"{generated.path}: no training image is of class {min(unknown)}; decode other samples")
        return Row(generated["images"][:n], None if labels is None else labels[:n])
    split = name.removesuffix("_images") if name.endswith("_images") else "train"
    # not the training images of part 0, which the row is compared with
    pair, part = (images[f"{split}_{what}"] for what in ("images", "labels")), int(split == "train")
    real = Row(*(metrics.quality.subset(x, n, seed, part) for x in pair))
    if split != "train":
        return real
    if name == "random":
        pixels = from_uint8(images["train_images"])
        noise = torch.randn(real.images.shape, generator=generator)
        return Row(to_uint8(pixels.mean() + pixels.std() * noise), None)
    if vae is None:
        raise InputError(f"the row {name} needs an autoencoder; take {name}.json out of the outputs in dvc.yaml")
    device = next(vae.parameters()).device
    posterior = networks.autoencoder.encode_images(vae, real.images.to(device))
    eps = torch.randn(posterior.mean.shape, generator=generator).to(device)
    prior = name == "vae_prior"
    decoded = networks.autoencoder.decode_images(vae, eps if prior else posterior.draw(eps)).cpu()
    return Row(decoded, None if prior else real.labels)


main = stage("evaluate", Config, compute, __doc__)

if __name__ == "__main__":
    main()
