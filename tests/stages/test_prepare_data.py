"""Where the images come from: the data root, a download, the embedded digits, or a folder of PNG images."""

import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from PIL import Image

from ldm import artifacts
from ldm.data import mnist
from ldm.networks import FEATURES
from stages import prepare_data

SPLITS = ("train", "validation", "test")


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Run the stage with the parameters of the project."""
    monkeypatch.chdir(ROOT)

    def run(*settings: str) -> artifacts.Artifact:
        arguments = [a for s in settings for a in ("--set", s)]
        monkeypatch.setattr("sys.argv", ["prepare_data", *arguments, "--out", str(tmp_path / "out")])
        prepare_data.main()
        return artifacts.load(tmp_path / "out/images.safetensors", "images")

    return run


def all_of(images: artifacts.Artifact, what: str) -> torch.Tensor:
    return torch.cat([images[f"{split}_{what}"] for split in SPLITS])


def sizes(images: artifacts.Artifact) -> list[int]:
    return [len(images[f"{split}_labels"]) for split in SPLITS]


def test_without_data_or_connection_the_embedded_digits(prepare, monkeypatch, tmp_path, capsys):
    def offline(*_, **__):
        raise RuntimeError("no route")

    monkeypatch.setenv("LDM_DATA_ROOT", str(tmp_path / "root"))
    monkeypatch.setattr("torchvision.datasets.MNIST", offline)
    images = prepare()
    assert sizes(images) == [3500, 500, 1000]
    assert images.config["data"] == "mnist-5k"
    error = capsys.readouterr().err
    assert "(no route)" in error
    assert "NOT THE FULL MNIST" in error
    assert "'mnist-5k' in every metric" in error
    assert not list((tmp_path / "root").iterdir())
    assert torch.bincount(all_of(images, "labels").long()).tolist() == [500] * 10
    assert len(all_of(images, "images").flatten(1).unique(dim=0)) >= 4990


def test_a_download_fills_the_root(monkeypatch, tmp_path):
    def fake(folder, train=True, download=False):
        raw = Path(folder) / "MNIST/raw"
        if download:
            raw.mkdir(parents=True)
            for name in mnist.MD5["MNIST"]:
                (raw / name).write_bytes(name.encode())
                (raw / f"{name}.gz").write_bytes(b"packed")

    monkeypatch.setattr("torchvision.datasets.MNIST", fake)
    assert mnist.download("MNIST", tmp_path / "root") is None
    assert sorted(p.name for p in (tmp_path / "root/MNIST/raw").iterdir()) == sorted(mnist.MD5["MNIST"])
    assert [p.name for p in (tmp_path / "root").iterdir()] == ["MNIST"]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LDM_DATA_ROOT"), reason="LDM_DATA_ROOT names no MNIST")
def test_the_full_set(prepare):
    images = prepare()
    assert sizes(images) == [55_000, 5_000, 10_000]
    about = {"classes": 10, "data": "mnist", "limit": 0, "seed": 0, "twins": {"validation": 0, "test": 0}}
    assert images.config == about
    counts = torch.bincount(torch.cat([images[f"{s}_labels"] for s in ("train", "validation")]).long())
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert images["test_labels"][:5].tolist() == [7, 2, 1, 0, 4]
    other = prepare("seed=1")
    assert not torch.equal(other["validation_labels"], images["validation_labels"])
    assert other.sha256 != images.sha256


def test_a_folder_of_images(prepare, tmp_path, capsys):
    for i in range(6):
        for name, grey in (("a", 0), ("b", 40 * i)):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 12), grey).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "images/a/readme.txt").write_text("no image")
    images = prepare("dataset=folder", f"root={tmp_path / 'images'}")
    said, warnings = capsys.readouterr()
    assert "2 test images are too few" in warnings
    assert f"in {FEATURES} features; have at least {FEATURES + 1}" in warnings
    assert "1 files" in warnings  # that do not end in .png
    known = {image.tobytes() for image in images["train_images"].numpy()}
    twins = {s: sum(x.tobytes() in known for x in images[f"{s}_images"].numpy()) for s in ("validation", "test")}
    assert sum(twins.values()) > 0  # seven of the twelve are all black
    assert f"{twins['validation']} validation and {twins['test']} test images are also training images" in said
    assert images.config == {"classes": 2, "data": "images", "limit": 0, "seed": 0, "twins": twins}
    assert sizes(images) == [9, 1, 2]
    assert all_of(images, "images").shape == (12, 1, 12, 8)
    of_b = all_of(images, "images")[all_of(images, "labels") == 1]
    assert sorted(of_b[:, 0, 0, 0].tolist()) == [0, 40, 80, 120, 160, 200]
