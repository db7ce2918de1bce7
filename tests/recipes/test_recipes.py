"""Recipes: pixels instead of latents, every option of theirs, and the code of their own checkout."""

import json
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from conftest import ROOT, SMALL, change, copy_project, run_in, run_stage
from PIL import Image

from ldm import artifacts, images
from ldm.diffusion import penalties, schedules
from ldm.diffusion.chains import Chain
from ldm.networks import networks
from stages.runner import read_yaml
from stages.train_diffusion import Config

pytestmark = pytest.mark.slow
FASHION = "recipes/fashion_ddpm"
GIT = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
SETTINGS = {key: value for key, value in SMALL.items() if not key.startswith(("prepare_data.", "train_vae."))}
EMBEDDED = {"prepare_data.dataset": "mnist", "prepare_data.source": "embedded", "prepare_data.limit": 300}
# every option of the pixel-space recipe, in as few trainings as can be
OPTIONS: list[dict[str, Any]] = [
    {"networks.unet.block": "convnext", "penalty": "l1", "schedule": "linear"},
    {"networks.unet.attention": "linear", "penalty": "huber", "schedule": "quadratic"},
    {
        "networks.unet.resampling": "fixed",
        "networks.unet.norm": "group",
        "networks.unet.groups": 8,
        "schedule": "sigmoid",
        "flip": 0.5,
    },
    {"networks.unet.multipliers": [1, 1, 2], "networks.unet.blocks": 2, "networks.unet.dropout": 0.1}
    | {"prediction": "eps", "weighting": "min_snr"},
]


def settings_of(*settings: str) -> list[str]:
    return [argument for setting in settings for argument in ("--set", setting)]


def stage(folder: Path, name: str, out: Path, *settings: str):
    """A stage of the pixel-space recipe, by hand."""
    return run_stage(folder, name, "--recipe", FASHION, *settings_of(*settings), "--out", str(out))


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A small copy of the project, without results."""
    folder = copy_project(tmp_path_factory.mktemp("recipes") / "project")
    for file in folder.glob("recipes/*/dvc.lock"):
        file.unlink()
    return folder


@pytest.fixture(scope="module")
def pixels(copy) -> Path:
    """The copy, in which the recipe fashion_ddpm has run on a few hundred digits."""
    small = {"train_diffusion.networks.unet.multipliers": [1, 2]}
    small |= {f"train_{name}.optimisation.steps": 10 for name in ("classifier", "second_classifier")}
    change(copy / FASHION / "params.yaml", SETTINGS | EMBEDDED | small)
    done = run_in(copy, "dvc", "repro", f"{FASHION}/dvc.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return copy


def test_pixels_instead_of_latents(pixels):
    folder = pixels / FASHION / "artifacts"
    latents = artifacts.load(folder / "encode_latents/latents.safetensors", "latents")
    data = artifacts.load(folder / "prepare_data/images.safetensors", "images")
    assert "vae" not in latents.lineage
    np.testing.assert_allclose(latents["train_mean"].numpy() * 255, data["train_images"].numpy(), atol=1e-4)
    rows = {path.stem: json.loads(path.read_text()) for path in (folder / "metrics").glob("*.json")}
    assert set(rows) == {"random", "diffusion", "test_images"}
    assert rows["test_images"]["fid_test"] == 1
    generated = artifacts.load(folder / "decode/generated.safetensors", "generated")["images"]
    with Image.open(folder / "decode/grid.png") as grid:
        assert np.array_equal(np.asarray(grid)[::2, ::2], images.tile(generated[:200], 20))
    script = f"import ldm; print(tuple(ldm.load('{FASHION}/artifacts').sample(3).shape))"
    assert run_in(pixels, sys.executable, "-c", script).stdout == "(3, 1, 28, 28)\n"


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(str(v) for v in options.values()))
def test_every_option_trains_on_real_images(pixels, tmp_path, options):
    done = stage(pixels, "train_diffusion", tmp_path, *(f"{key}={value}" for key, value in options.items()))
    assert done.returncode == 0, done.stderr
    curve = json.loads((tmp_path / "history.json").read_text())
    assert curve[-1]["loss"] < curve[0]["loss"]
    recorded = artifacts.load(tmp_path / "denoiser.safetensors", "denoiser").config
    for key, value in options.items():
        place = recorded
        for part in key.split("."):
            place = place[part]
        assert place == value, key


def test_the_options_tried_are_all_words_of_the_unet_penalties_and_chains():
    """Every value of every option of the U-Net that is one of a few words, every penalty, and every schedule of β."""
    values = read_yaml(ROOT / FASHION / "params.yaml")["train_diffusion"]
    section = Config.parse(values, "train_diffusion").resolved()

    def tried(key: str) -> set[Any]:
        default: Any = section
        for part in key.split("."):
            default = default[part]
        return {default} | {options[key] for options in OPTIONS if key in options}

    unet = networks.options("unet").model_fields
    few = {
        name: set(get_args(field.annotation)) for name, field in unet.items() if field.annotation.__name__ == "Literal"
    }
    assert set(few) >= {"block", "attention", "resampling"}
    assert {name: tried(f"networks.unet.{name}") for name in few} == few
    assert tried("penalty") == set(penalties.functions)
    of_beta = {name for name in schedules.functions if isinstance(schedules.build(name), Chain)}
    assert of_beta >= {"linear", "cosine"}
    assert tried("schedule") == of_beta


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("networks.unet.patch=3", "3 does not divide the grid of 28 × 28"),
        ("networks.unet.multipliers=[1, 0]", "networks.unet.multipliers.1: 0 will not do"),
        (
            "networks.unet={width: 12, norm: group, groups: 8}",
            "width 12 times the multiplier 1 gives 12 channels, not a multiple of 8 groups",
        ),
    ],
)
def test_networks_that_do_not_fit_are_refused(pixels, tmp_path, setting, words):
    done = stage(pixels, "train_diffusion", tmp_path, setting)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_recipe_runs_the_code_of_its_own_checkout(copy, tmp_path):
    """In a git worktree beside the project whose package is the installed one."""
    for line in (("add", "-A"), ("commit", "-qm", "Start", "--allow-empty")):
        assert run_in(copy, *GIT, *line).returncode == 0
    tree = tmp_path / "worktree"
    assert run_in(copy, "git", "worktree", "add", "-q", str(tree)).returncode == 0
    change(tree / FASHION / "params.yaml", EMBEDDED | {"prepare_data.limit": 100})
    with (tree / "ldm/data/known.py").open("a") as file:
        file.write('\nprint("the code of the worktree", __file__)\n')
    target = f"{FASHION}/dvc.yaml:prepare_data"
    done = run_in(tree, "dvc", "repro", target, PYTHONPATH="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the code of the worktree {tree / 'ldm/data/known.py'}" in done.stdout
    data = artifacts.load(tree / FASHION / "artifacts/prepare_data/images.safetensors", "images")
    assert len(data["train_images"]) == 100
    locked = read_yaml(tree / FASHION / "dvc.lock")["stages"]["prepare_data"]
    status = run_in(tree, "dvc", "status", target, PYTHONPATH="")
    assert "up to date" in status.stdout, status.stdout
    assert {dep["path"] for dep in locked["deps"]} >= {"ldm/data", "stages/prepare_data.py"}
