"""tools.draw and the file of a model: one file that is enough, and gives the digits that the folder gives."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_in
from PIL import Image

import ldm
from ldm import artifacts

pytestmark = pytest.mark.slow


@pytest.fixture
def file(project, tmp_path):
    return shutil.copy(project / "artifacts/export/model.safetensors", tmp_path / "digits.safetensors")


def test_the_file_draws_what_the_folder_draws(project, file, tmp_path):
    from_folder, from_file = ldm.load(project / "artifacts", "cpu"), ldm.load(file)
    assert torch.equal(from_folder.sample(12, seed=3), from_file.sample(12, seed=3))
    assert from_file.labels(12).tolist() == from_folder.labels(12).tolist()
    states = from_file.denoising(3, seed=3, steps=4)
    assert states.shape == (3, 5, 1, 28, 28)
    assert (states[:, -1].int() - from_file.sample(3, seed=3, steps=4).int()).abs().max() <= 2
    from_file.save(tmp_path / "again.safetensors")
    from_folder.save(tmp_path / "anew.safetensors")
    for name in ("again", "anew"):
        assert (tmp_path / f"{name}.safetensors").read_bytes() == file.read_bytes()


def test_a_model_of_bf16_draws_in_fp32_where_a_machine_has_no_bf16(file, monkeypatch):
    fp32 = ldm.load(file, "cpu")
    bf16 = replace(fp32, sampling={**fp32.sampling, "precision": "bf16"})
    drawn = {}
    for has in (True, False):
        monkeypatch.setattr("ldm.model.has_bf16", lambda device_type, has=has: has)
        drawn[has] = bf16.sample(6)
    assert torch.equal(drawn[False], fp32.sample(6))
    assert not torch.equal(drawn[True], drawn[False])


def test_the_file_holds_what_it_needs_and_where_it_comes_from(project, file):
    made = artifacts.load(file, "model")
    assert set(made.config) == {"denoiser", "guide", "vae", "latents", "samples"}
    assert (
        made.lineage["denoiser"]
        == artifacts.load(project / "artifacts/train_diffusion/denoiser.safetensors", "denoiser").sha256
    )
    assert sum(tensor.numel() for name, tensor in made.tensors.items() if name.startswith("latents.")) == 4
    assert made.config["denoiser"]["class_names"] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("change", ["denoiser.", "latents.channel_mean", "config", "dtype"])
def test_a_forged_file_ends_in_one_line(file, tmp_path, change):
    made = artifacts.load(file, "model")
    tensors, config = dict(made.tensors), json.loads(json.dumps(made.config))
    if change == "config":
        del config["guide"]
    elif change == "dtype":
        tensors["latents.channel_std"] = tensors["latents.channel_std"].float()
    else:
        del tensors[next(name for name in tensors if name.startswith(change))]
    artifacts.save(tmp_path / "forged.safetensors", "model", tensors, config)
    with pytest.raises(ldm.InputError, match=r"forged\.safetensors: .*; rebuild it with 'dvc repro export'"):
        ldm.load(tmp_path / "forged.safetensors")


def draw(project, *words):
    return run_in(project, sys.executable, "-m", "tools.draw", *words)


def test_a_grid_and_an_animation(project, file, tmp_path):
    done = draw(project, "--labels", "7,1", "--n", "6", "--columns", "3", "--steps", "3", "--out", f"{tmp_path}/a.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.png") as grid:
        pixels = np.asarray(grid)[::2, ::2]
    images = ldm.load(file, "cpu").sample(6, label=[7, 1, 7, 1, 7, 1], steps=3)
    assert np.abs(pixels.astype(int) - ldm.tile(images, 3)).max() <= 2
    done = draw(project, "--model", str(file), "--n", "4", "--steps", "3", "--out", f"{tmp_path}/a.gif")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 4


def test_the_committed_model_draws_where_no_pipeline_has_run(tmp_path):
    file = Path("artifacts/export/model.safetensors")
    (tmp_path / file).parent.mkdir(parents=True)
    shutil.copy(ROOT / file, tmp_path / file)
    words = ("--labels", "0,1,2,3", "--n", "4", "--steps", "2", "--out", "digits.png")
    done = run_in(tmp_path, sys.executable, "-m", "tools.draw", *words, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "digits.png") as grid:
        pixels = np.asarray(grid)[::2, ::2]
    images = ldm.load(ROOT / file, "cpu").sample(4, label=[0, 1, 2, 3], steps=2)
    assert np.abs(pixels.astype(int) - ldm.tile(images, 10)).max() <= 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--out", "x.jpg"], "draw: --out x.jpg: name a .png file for a grid, or a .gif file for an animation"),
        (["--out", "x.png", "--labels", "12"], "draw: label 12: the denoiser was not trained on this class, but on 0"),
        (["--out", "x.png", "--labels", "3,"], "draw: label '': the denoiser was not trained on this class, but on 0"),
        (["--out", "x.png", "--labels", ""], "draw: label '': the denoiser was not trained on this class, but on 0"),
        (["--out", "x.png", "--model", "nosuch"], "nosuch is missing in /"),
        (
            ["--out", "x.png", "--model", "artifacts/export"],
            "artifacts/export holds no artifacts of a pipeline; name a",
        ),
    ],
)
def test_mistakes_end_in_one_line(project, words, line):
    done = draw(project, *words)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (project / "x.png").exists()
