"""Where the images come from: the data root, a download, the embedded digits, or a folder of pictures."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from PIL import Image

from ldm import InputError, artifacts
from stages import prepare_data
from stages.runner import read_section, with_settings

DATA_ROOT = os.environ.get("LDM_DATA_ROOT", "")
SPLITS = ("train", "validation", "test")


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Run the stage with the parameters of the project."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("LDM_DATA_ROOT", raising=False)

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
    """Of the default root, here an empty folder's, and of no other."""

    def offline(*_, **__):
        raise RuntimeError("no route")

    monkeypatch.delenv("LDM_DATA_ROOT", raising=False)
    monkeypatch.setattr(prepare_data, "ROOT", str(tmp_path / "data"))
    monkeypatch.setattr("torchvision.datasets.MNIST", offline)
    images = prepare(f"root={tmp_path / 'data'}")
    assert sizes(images) == [3500, 500, 1000]
    assert images.config["data"] == "mnist-5k"
    error = capsys.readouterr().err
    assert "(no route)" in error
    assert "NOT THE FULL MNIST" in error
    assert "'mnist-5k' in every metric" in error
    assert not list((tmp_path / "data").iterdir())
    assert torch.bincount(all_of(images, "labels").long()).tolist() == [500] * 10
    assert [torch.bincount(images[f"{split}_labels"].long()).tolist() for split in SPLITS] == [
        [350] * 10, [50] * 10, [100] * 10,
    ]  # fmt: skip
    assert len(all_of(images, "images").flatten(1).unique(dim=0)) >= 4990


def test_an_experiment_in_a_temporary_workspace_keeps_its_data(monkeypatch, tmp_path, capsys):
    """`dvc exp run --temp` runs in a copy without the folder data; neither a download nor other digits replace it."""
    workspace = tmp_path / ".dvc/tmp/exps/tmpabc"
    workspace.mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, workspace)
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("LDM_DATA_ROOT", raising=False)
    monkeypatch.setattr(prepare_data.data.known, "download", None)
    monkeypatch.setattr("sys.argv", ["prepare_data"])
    with pytest.raises(SystemExit) as end:
        prepare_data.main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(", in this temporary workspace; set LDM_DATA_ROOT to where the images are")
    assert not list(workspace.rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(not DATA_ROOT, reason="LDM_DATA_ROOT names no MNIST")
def test_the_full_set(prepare, monkeypatch):
    monkeypatch.setenv("LDM_DATA_ROOT", DATA_ROOT)
    images = prepare()
    assert sizes(images) == [55_000, 5_000, 10_000]
    about = {"classes": 10, "data": "mnist", "limit": 0, "seed": 0, "twins": {"validation": 0, "test": 0}}
    assert images.config == about | {"class_names": [str(digit) for digit in range(10)]}
    counts = torch.bincount(torch.cat([images[f"{s}_labels"] for s in ("train", "validation")]).long())
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert images["test_labels"][:5].tolist() == [7, 2, 1, 0, 4]
    other = prepare("seed=1")
    assert not torch.equal(other["validation_labels"], images["validation_labels"])
    assert other.sha256 != images.sha256


@pytest.fixture
def leaves(tmp_path) -> Path:
    """10 pictures of `ash 2` and 20 of `ash 10`, all different, one of them twice."""
    for name, count in (("ash 2", 10), ("ash 10", 20)):
        (tmp_path / "leaves" / name).mkdir(parents=True)
        for i in range(count):
            grey = 5 * i + (20 if name == "ash 10" else 11)
            Image.new("L", (8, 12), grey).save(tmp_path / "leaves" / name / f"{i}.png")
    shutil.copy(tmp_path / "leaves/ash 2/0.png", tmp_path / "leaves/ash 2/copy.png")
    return tmp_path / "leaves"


def test_a_folder_of_pictures(prepare, leaves, capsys):
    (leaves / "ash 2/readme.txt").write_text("no image")
    (leaves / "LICENSE").write_text("free")
    images = prepare("dataset=folder", f"root={leaves}")
    said, warnings = capsys.readouterr()
    assert "6 test images have no covariance of 128 features" in warnings
    assert "1 beside the class folders (LICENSE); 1 no pictures by their names, or no files (ash 2/readme.txt)" in said
    assert "1 pictures are equal to another one; equal ones are kept within one split" in said
    assert "22 train, 3 validation, 6 test images, 12 × 8 in grey" in said
    assert "2 classes: ash 2, ash 10" in said
    about = {"classes": 2, "class_names": ["ash 2", "ash 10"], "data": "leaves", "limit": 0, "seed": 0}
    assert images.config == about | {"twins": {"validation": 0, "test": 0}}
    assert sizes(images) == [22, 3, 6]
    assert [torch.bincount(images[f"{split}_labels"].long()).tolist() for split in SPLITS] == [[8, 14], [1, 2], [2, 4]]
    assert all_of(images, "images").shape == (31, 1, 12, 8)
    of_10 = all_of(images, "images")[all_of(images, "labels") == 1]
    assert sorted(of_10[:, 0, 0, 0].tolist()) == [5 * i + 20 for i in range(20)]


def test_a_folder_is_converted_as_asked(prepare, leaves):
    images = prepare("dataset=folder", f"root={leaves}", "size=[6, 9]", "fit=pad", "channels=colour", "background=red")
    pixels = all_of(images, "images")
    assert pixels.shape == (31, 3, 6, 9)
    assert pixels[:, :, :, 0].unique(dim=0).tolist() == [[[255] * 6, [0] * 6, [0] * 6]]
    assert prepare("dataset=folder", f"root={leaves}", "size=5")["test_images"].shape[1:] == (1, 5, 5)


def test_small_classes_are_left_out_and_named(prepare, leaves, capsys):
    for name in ("birch", "empty"):
        (leaves / name).mkdir()
    Image.new("L", (8, 12), 1).save(leaves / "birch/0.png")
    images = prepare("dataset=folder", f"root={leaves}", "min_per_class=5")
    assert images.config["class_names"] == ["ash 2", "ash 10"]
    assert "classes left out, with fewer than 5 pictures: birch (1), empty (0)" in capsys.readouterr().out


def test_broken_pictures_are_left_out_where_asked(prepare, leaves, capsys):
    (leaves / "ash 2/broken.png").write_text("no image")
    images = prepare("dataset=folder", f"root={leaves}", "skip_broken=true")
    assert sum(sizes(images)) == 31
    error = capsys.readouterr().err
    assert f"1 broken pictures left out: {leaves}/ash 2/broken.png (UnidentifiedImageError" in error


def test_pictures_may_lie_where_nothing_can_be_written(prepare, leaves):
    for path in [*leaves.rglob("*"), leaves]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in [leaves, *leaves.rglob("*")]}
    assert sum(sizes(prepare("dataset=folder", f"root={leaves}"))) == 31
    assert {path: path.stat().st_mtime_ns for path in [leaves, *leaves.rglob("*")]} == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["dataset=cifar10", "size=16"], "dataset cifar10 takes no size; leave that out"),
        (["dataset=mnist", "min_per_class=3", "split=letters"], "dataset mnist takes no min_per_class and no split"),
        (["dataset=emnist", "split=letters", "fit=pad"], "dataset emnist takes no fit;"),
        (["dataset=mnist", "shares=[0.5, 0.25, 0.25]"], "dataset mnist takes no shares;"),
        (["dataset=folder", "split=letters", "fit=pad"], "dataset folder takes no split;"),
    ],
)
def test_what_a_set_does_not_read_is_refused(settings, words):
    values = with_settings({"prepare_data": {"seed": 0}}, [f"prepare_data.{text}" for text in settings])
    with pytest.raises(InputError, match=words):
        prepare_data.Config.parse(values["prepare_data"], "prepare_data")


@pytest.mark.parametrize("name", ["a #2", "b: c", "2024-01-01", "1e3", "null x", "[y", "~z", "$HOME"])
def test_a_root_of_any_name(prepare, leaves, name):
    shutil.copytree(leaves, leaves.parent / name)
    assert prepare("dataset=folder", f"root={leaves.parent / name}").config["data"] == name


@pytest.mark.parametrize("name", ["2024", "2024-01-01", "007", "1.5", "1e3", "0x10", "1_000", "true"])
def test_a_root_in_params_yaml_that_looks_like_a_number(tmp_path, name):
    """`dvc exp run -S prepare_data.root=2024` writes it without quotes."""
    (tmp_path / "params.yaml").write_text(f"prepare_data: {{seed: 0, dataset: folder, root: {name}}}")
    values = read_section(tmp_path / "params.yaml", "prepare_data")
    assert prepare_data.Config.parse(values, "prepare_data").root == name


def test_a_number_in_the_place_of_a_name_is_to_be_quoted():
    with pytest.raises(InputError, match=r"root: 1000\.0 will not do; it should be a valid string: write it in quotes"):
        prepare_data.Config.parse({"seed": 0, "dataset": "folder", "root": 1e3}, "prepare_data")


def test_a_colour_that_yaml_takes_for_a_comment_is_to_be_quoted():
    with pytest.raises(InputError, match=r"background: None will not do; .*, and one that begins with # needs quotes"):
        prepare_data.Config.parse({"seed": 0, "dataset": "folder", "background": None}, "prepare_data")


def test_a_relative_root_that_looks_like_a_number(prepare, leaves, monkeypatch):
    shutil.copytree(leaves, leaves.parent / "2024")
    shutil.copy(ROOT / "params.yaml", leaves.parent)
    shutil.copy(ROOT / "dvc.yaml", leaves.parent)
    monkeypatch.chdir(leaves.parent)
    assert prepare("dataset=folder", "root=2024").config["data"] == "2024"
    monkeypatch.setenv("HOME", str(leaves.parent))
    assert prepare("dataset=folder", "root=~/2024").config["data"] == "2024"
