"""torchvision's sets: read from its layout, every file checked before it is unpacked, downloaded with a time-out."""

import gzip
import hashlib
import pickle
import shutil
import socket
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from conftest import ROOT

from ldm import artifacts
from ldm.data import known
from ldm.errors import InputError
from stages import prepare_data

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(256, size=(12, 28, 28), dtype=np.uint8), (np.arange(12) % 10).astype(np.uint8)


def md5(contents: bytes) -> str:
    return hashlib.md5(contents).hexdigest()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write(path: Path, contents: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)
    return md5(contents)


FILES = {
    f"{part}-{what}-{known.ENDS[what]}": idx(array)
    for part in ("train", "t10k")
    for what, array in (("images", IMAGES), ("labels", LABELS))
}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A data root with a small file of every set, whose checksums are taken for the real ones."""
    sets = torchvision.datasets
    for name in ("MNIST", "FashionMNIST"):
        found = {file[:-11]: write(tmp_path / name / "raw" / file, text) for file, text in FILES.items()}
        monkeypatch.setitem(known.MD5, name, found)
    packed = [(f"{f}.gz", write(tmp_path / "KMNIST/raw" / f"{f}.gz", gzip.compress(x))) for f, x in FILES.items()]
    monkeypatch.setattr(sets.KMNIST, "resources", packed)
    archive = tmp_path / "EMNIST/raw/gzip.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as members:
        for split in ("letters", "balanced"):
            for file, contents in FILES.items():
                own = idx(LABELS % 10 + 1) if split == "letters" and "labels" in file else contents
                members.writestr(f"gzip/emnist-{split}-{file.replace('t10k', 'test')}.gz", gzip.compress(own))
    monkeypatch.setattr(sets.EMNIST, "md5", md5(archive.read_bytes()))
    colours = RNG.integers(256, size=(12, 3072), dtype=np.uint8)
    for data, key, meta in ((sets.CIFAR10, "labels", "batches.meta"), (sets.CIFAR100, "fine_labels", "meta")):
        batch = pickle.dumps({"data": colours, key: LABELS.tolist()})
        for part, file in (("train_list", "data_batch_1"), ("test_list", "test_batch")):
            monkeypatch.setattr(data, part, [[file, write(tmp_path / data.base_folder / file, batch)]])
        names = pickle.dumps({data.meta["key"]: [f"thing {i}" for i in range(10)]})
        digest = write(tmp_path / data.base_folder / meta, names)
        monkeypatch.setattr(data, "meta", data.meta | {"filename": meta, "md5": digest})
    pixels = colours.reshape(12, 3, 32, 32)
    for split in ("train", "test"):
        file = tmp_path / f"{split}_32x32.mat"
        digits = LABELS.copy()
        digits[digits == 0] = 10
        scipy.io.savemat(file, {"X": pixels.transpose(2, 3, 1, 0), "y": digits[:, None]})
        monkeypatch.setitem(sets.SVHN.split_list, split, ["", file.name, md5(file.read_bytes())])
    monkeypatch.setattr(known, "COLOURS", pixels, raising=False)
    return tmp_path


@pytest.mark.parametrize("name", known.SETS)
def test_each_set_is_read_from_its_layout(root, name):
    assert known.missing(name, root) is None
    found = known.read(name, root)
    colour = name in ("cifar10", "cifar100", "svhn")
    images = known.COLOURS if colour else IMAGES[:, None]
    expected = images.transpose(0, 1, 3, 2) if name == "emnist" else images
    for part in (found.train, found.test):
        assert (part[0].dtype, part[1].dtype) == (torch.uint8, torch.uint8)
        assert np.array_equal(part[0].numpy(), expected)
        assert np.array_equal(part[1].numpy(), LABELS)
    assert len(found.names) == {"emnist": 47}.get(name, 10)
    assert found.names[3] == {
        "mnist": "3", "svhn": "3", "fashion_mnist": "Dress", "kmnist": "tsu", "emnist": "3",
        "cifar10": "thing 3", "cifar100": "thing 3",
    }[name]  # fmt: skip


def test_the_stage_takes_each_set_by_one_word(root, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("LDM_DATA_ROOT", raising=False)
    for name in known.SETS:
        words = [f"dataset={name}", f"root={root}", "seed=0"]
        settings = [word for text in words for word in ("--set", text)]
        monkeypatch.setattr("sys.argv", ["prepare_data", *settings, "--out", str(tmp_path / "out")])
        prepare_data.main()
        images = artifacts.load(tmp_path / "out/images.safetensors", "images")
        assert images.config["data"] == {"emnist": "emnist-balanced"}.get(name, name.replace("_", "-"))
        assert [len(images[f"{split}_labels"]) for split in ("train", "validation", "test")] == [10, 2, 12]
        assert len(images.config["class_names"]) == images.config["classes"]


def test_letters_begin_at_a(root):
    found = known.read("emnist", root, "letters")
    assert found.names[:2] == ["a", "b"]
    assert np.array_equal(found.train[1].numpy(), LABELS)


@pytest.mark.parametrize(
    "change", [lambda f: f.with_name(f.name + ".gz"), lambda f: f.with_name(f.name.replace("-idx", ".idx"))]
)
def test_packed_files_and_kaggles_names(root, change):
    for file in (root / "MNIST/raw").iterdir():
        contents = file.read_bytes()
        file.unlink()
        other = change(file)
        other.write_bytes(gzip.compress(contents, 1) if other.suffix == ".gz" else contents)
    assert np.array_equal(known.read("mnist", root).test[0].numpy()[:, 0], IMAGES)


@pytest.mark.parametrize("name", known.SETS)
def test_a_corrupt_file_is_refused_before_it_is_parsed(root, name, monkeypatch):
    for place in known.places(name):
        at = root / place
        for file in sorted(at.iterdir()) if at.is_dir() else [at]:
            file.write_bytes(file.read_bytes()[:-1] + b"x")
    for module, function in ((pickle, "load"), (gzip, "decompress"), (scipy.io, "loadmat")):
        monkeypatch.setattr(module, function, lambda *_, **__: pytest.fail("was unpacked"))
    monkeypatch.setattr(known, "_idx", lambda *_: pytest.fail("was parsed"))
    with pytest.raises(InputError, match=r"is corrupt|is missing or corrupt") as caught:
        known.read(name, root)
    assert str(root) in str(caught.value)


def test_what_a_root_lacks_and_where_it_lies(root, tmp_path):
    empty = tmp_path / "far/from/the/root/empty"
    empty.mkdir(parents=True)
    said = known.missing("cifar10", tmp_path / "a/b/c/d")
    assert said.endswith("does not hold CIFAR10, which is cifar-10-batches-py in it")
    assert f"{root} does, so name that" in known.missing("mnist", root / "MNIST")
    assert f"{root} does, so name that" in known.missing("svhn", root / "MNIST/raw")
    for below in ("MNIST", "MNIST/raw", "MNIST/raw/train"):  # whose files do not lie too high
        write(root / "MNIST/raw/train-images-idx3-ubyte", b"")
        assert known.missing("mnist", root / below).endswith(f"in it; {root} does, so name that")
    write(empty / "file", b"")
    assert "unpack it" not in known.missing("cifar10", empty / "file")
    assert "train_32x32.mat and test_32x32.mat in it" in known.missing("svhn", empty)
    write(empty / "train-images.idx3-ubyte", b"")  # as an archive of Kaggle's leaves them
    raw = empty / "MNIST/raw"
    assert known.missing("mnist", empty).endswith(f"mkdir -p {raw} && mv {empty}/*ubyte* {raw}")
    spaced = shutil.copytree(empty, empty.with_name("my digits"))
    assert known.missing("mnist", spaced).endswith(f" && mv '{spaced}'/*ubyte* '{spaced}/MNIST/raw'")
    write(empty / "cifar-10-python.tar.gz", b"")
    assert known.missing("cifar10", empty).endswith(f"unpack it: tar xzf {empty}/cifar-10-python.tar.gz -C {empty}")


def test_a_download_fills_the_root_and_has_a_time_out(root, tmp_path, monkeypatch, capsys):
    seen = []

    class Fake:
        def __init__(self, folder, train=True, download=False):
            seen.append(socket.getdefaulttimeout())
            write(Path(folder) / "MNIST/raw/x", b"x")

    monkeypatch.setattr("torchvision.datasets.MNIST", Fake)
    target = tmp_path / "new"
    assert known.download("mnist", target, "balanced") is None
    assert [str(path.relative_to(target)) for path in sorted(target.rglob("*"))] == [
        "MNIST",
        "MNIST/raw",
        "MNIST/raw/x",
    ]
    assert seen == [known.PATIENCE]
    assert socket.getdefaulttimeout() is None
    assert f"downloading MNIST into {target}" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["server", "proxy"])
def test_a_mute_server_ends_a_download(tmp_path, monkeypatch, place):
    """It accepts, and never answers."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr(known, "PATIENCE", 0.5)
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [url if place == "server" else "http://192.0.2.1/"])
        monkeypatch.setenv(*("no_proxy", "*") if place == "server" else ("http_proxy", url))
        monkeypatch.setattr("urllib.request._opener", None)  # which keeps the proxies of its first use
        said = known.download("mnist", tmp_path / "new", "balanced")
        server.settimeout(1)
        server.accept()[0].close()  # it has been asked
    monkeypatch.setattr("urllib.request._opener", None)
    assert said.startswith(f"the download into {tmp_path / 'new'} failed")
    assert not list((tmp_path / "new").iterdir())
