"""MNIST and Fashion-MNIST in torchvision's layout: `<root>/MNIST/raw`, `<root>/FashionMNIST/raw`."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# torchvision's class → MD5 of the unpacked files of the original distribution
MD5 = {
    "MNIST": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def obtain(name: str, root: Path) -> bool:
    """Whether the root holds the set, downloaded if need be; its files are verified.

    Raises: InputError for a missing or corrupt file in a root that has the set's folder.
    """
    raw = root / name / "raw"
    if not raw.is_dir() and not download(name, root):
        return False
    for file, md5 in MD5[name].items():
        path = raw / file
        if not path.is_file():
            raise InputError(f"{path} is missing; put it there, or remove {raw} to download the set again")
        found = hashlib.md5(path.read_bytes()).hexdigest()
        if found != md5:
            raise InputError(f"{path} is corrupt (MD5 {found}, not {md5}); replace it, or remove {raw} to download the set again")
    return True


def download(name: str, root: Path) -> bool:
    """Download the set into the root by torchvision, into a side folder first; False without a connection or where the root cannot be written."""
    import shutil
    import tempfile

    from torchvision import datasets

    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download.") as folder:
            getattr(datasets, name)(folder, download=True)
            for packed in Path(folder).glob(f"{name}/raw/*.gz"):
                packed.unlink()
            (root / name).mkdir(exist_ok=True)
            shutil.move(Path(folder) / name / "raw", root / name / "raw")
    except (OSError, RuntimeError) as error:
        print(f"prepare_data: the download into {root} failed ({error})", file=sys.stderr)
        return False
    return True


def read(name: str, root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """The training or the test images (N, 1, 28, 28) and labels (N,), both uint8."""
    import torch
    from torchvision import datasets

    data = getattr(datasets, name)(str(root), train=train)
    return data.data[:, None], data.targets.to(torch.uint8)
