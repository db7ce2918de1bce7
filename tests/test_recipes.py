"""Other experiments by the same stages: a user's own images, and pixels instead of latents."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL, change, copy_project, run_in
from PIL import Image

from ldm import artifacts
from ldm.denoiser import Denoiser
from ldm.errors import InputError
from stages.cli import read_yaml

pytestmark = pytest.mark.slow
SETTINGS = {key: value for key, value in SMALL.items() if not key.startswith(("prepare_data.", "train_vae."))}
# every option of the pixel-space recipe, in as few trainings as can be
OPTIONS = [
    {"networks.unet.block": "convnext", "loss": "l1", "schedule": "linear"},
    {"networks.unet.attention": "linear", "loss": "huber", "schedule": "quadratic"},
    {"networks.unet.resampling": "fixed", "schedule": "sigmoid", "flip": 0.5},
    {"networks.unet.multipliers": [1, 1, 2], "networks.unet.blocks": 2, "networks.unet.dropout": 0.1, "target": "eps"},
]


def command(name: str, *settings: str) -> list[str]:
    return [sys.executable, "-m", f"stages.{name}", *(argument for s in settings for argument in ("--set", s))]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A small copy of the project, without results."""
    return copy_project(tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def pixels(copy) -> Path:
    """The recipe fashion_ddpm, on a few hundred digits, up to the latents."""
    folder = copy / "recipes/fashion_ddpm"
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    (folder / "dvc.lock").unlink(missing_ok=True)
    embedded = {"prepare_data.dataset": "mnist", "prepare_data.source": "embedded", "prepare_data.limit": 300}
    change(folder / "params.yaml", SETTINGS | embedded | {"train_diffusion.networks.unet.multipliers": [1, 2]})
    done = run_in(folder, "dvc", "repro", PYTHONPATH=str(copy))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pixels_instead_of_latents(pixels):
    latents = artifacts.load(pixels / "artifacts/encode_latents/latents.safetensors", "latents")
    images = artifacts.load(pixels / "artifacts/prepare_data/images.safetensors", "images")
    assert "vae" not in latents.lineage
    np.testing.assert_allclose(latents["train_mean"].numpy() * 255, images["train_images"].numpy(), atol=1e-4)
    rows = {path.stem: json.loads(path.read_text()) for path in (pixels / "artifacts/metrics").glob("*.json")}
    assert set(rows) == {"random", "diffusion", "held_out"}
    assert rows["held_out"]["fid_over_floor"] == 1
    with Image.open(pixels / "artifacts/report/schedules.png") as picture:
        assert np.asarray(picture).std() > 10
    script = "import ldm; print(tuple(ldm.load('artifacts').sample(3).shape))"
    assert run_in(pixels, sys.executable, "-c", script, PYTHONPATH=str(pixels.parent.parent)).stdout == "(3, 1, 28, 28)\n"


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_every_option_trains_on_real_images(pixels, tmp_path, options):
    settings = [f"{key}={value}" for key, value in options.items()]
    done = run_in(pixels, *command("train_diffusion", *settings), "--out", str(tmp_path), PYTHONPATH=str(pixels.parent.parent))
    assert done.returncode == 0, done.stderr
    curve = json.loads((tmp_path / "history.json").read_text())
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_the_options_tried_are_all_that_there_are():
    tried = {(key, str(value)) for options in OPTIONS for key, value in options.items()}
    section = read_yaml(ROOT / "recipes/fashion_ddpm/params.yaml")["train_diffusion"]
    for word, kind in (("schedule", "schedules"), ("loss", "losses")):
        assert {value for key, value in tried if key == word} | {section[word]} == set(section[kind])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("networks.unet.patch=3", "3 does not divide the grid of 28 × 28"),
        ("networks.unet.multipliers=[1, 0]", "width 16 times the multiplier 0 gives 0 channels"),
        ("networks.unet.width=12", "width 12 times the multiplier 1 gives 12 channels, not a multiple of 8 groups"),
    ],
)
def test_networks_that_do_not_fit_are_refused(pixels, tmp_path, setting, words):
    done = run_in(pixels, *command("train_diffusion", setting), "--out", str(tmp_path), PYTHONPATH=str(pixels.parent.parent))
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_weights_of_a_network_for_other_channels_are_refused(pixels):
    """A denoiser of grey digits, loaded into a network for colour."""
    artifact = artifacts.load(pixels / "artifacts/train_diffusion/denoiser.safetensors", "denoiser")
    colour = Denoiser.from_config(artifact.config, (3, 28, 28), artifact.config["class_sizes"])
    with pytest.raises(InputError, match=r"denoiser\.safetensors: tensor .* is torch\.float32 .*, but torch\.float32 .* is wanted"):
        artifact.load_into(colour.network)


def draw_images(root: Path, n: int) -> None:
    """Coloured images of 16 × 12 pixels in three classes: bars of three directions, with noise."""
    rng = np.random.default_rng(0)
    for i in range(n):
        image = rng.integers(0, 60, (16, 12, 3))
        at = rng.integers(2, 10)
        match i % 3:
            case 0:
                image[:, at] += 150
            case 1:
                image[at + 2, :, 0] += 180
            case 2:
                image[np.arange(12), np.arange(12), 2] += 180
        (root / "abc"[i % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(root / "abc"[i % 3] / f"{i}.png")


def test_a_recipe_for_a_folder_of_images(copy, tmp_path):
    """As docs/recipes.md says: no Python, a few lines of YAML."""
    draw_images(tmp_path / "bars", 1300)
    settings = ["prepare_data.dataset=folder", "prepare_data.source=auto", f"prepare_data.root={tmp_path / 'bars'}", "prepare_data.limit=0"]
    settings += ["evaluate.n=260", "memorisation.n=260", "sample.n=260"]
    done = run_in(copy, *command("new_recipe", *settings), "recipes/bars")
    assert done.returncode == 0, done.stderr
    before, after = (flat(read_yaml(path)) for path in (copy / "params.yaml", copy / "recipes/bars/params.yaml"))
    assert {key for key in after if after[key] != before[key]} == {s.partition("=")[0] for s in settings}
    done = run_in(copy, "dvc", "repro", "recipes/bars/dvc.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = copy / "recipes/bars"
    row = json.loads((folder / "artifacts/metrics/diffusion.json").read_text())
    assert (row["data"], row["n"]) == ("bars", 260)
    generated = artifacts.load(folder / "artifacts/decode/generated.safetensors", "generated")["images"]
    assert generated.shape == (260, 3, 16, 12)
    with Image.open(folder / "artifacts/decode/grid.png") as grid:
        assert grid.mode == "RGB"
    experiments_work(copy, folder)


def experiments_work(copy: Path, folder: Path) -> None:
    """`dvc exp run -S`, `dvc metrics diff` and `dvc plots diff` in the recipe's folder."""
    for line in (("add", "-A"), ("-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "Start")):
        assert run_in(copy, "git", *line).returncode == 0
    settings = ["evaluate.neighbours=3", "train_diffusion.schedules.linear.steps=50"]  # the second is of a choice not made
    done = run_in(folder, "dvc", "exp", "run", *(a for s in settings for a in ("-S", s)), PYTHONPATH=str(copy))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Running stage 'evaluate'" in done.stdout
    assert "Running stage 'sample'" not in done.stdout
    found = read_yaml(folder / "params.yaml")
    assert (found["evaluate"]["neighbours"], found["train_diffusion"]["schedules"]["linear"]["steps"]) == (3, 50)
    shown = run_in(folder, "dvc", "metrics", "diff").stdout
    assert "coverage" in shown
    assert run_in(folder, "dvc", "plots", "diff").returncode == 0


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    """Dotted key → value."""
    items = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v} for k, v in values.items()]
    return {key: value for part in items for key, value in part.items()}


def test_a_recipe_takes_parameters_that_the_pipeline_leaves_out(copy):
    done = run_in(copy, *command("new_recipe", "train_diffusion.optimisation.compile=true", "train_vae.optimisation.muon_lr=0.01"), "recipes/compiled")
    assert done.returncode == 0, done.stderr
    found = read_yaml(copy / "recipes/compiled/params.yaml")
    assert found["train_diffusion"]["optimisation"]["compile"] is True
    assert found["train_vae"]["optimisation"]["muon_lr"] == 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recipes/toys"], "recipes/toys exists already"),
        (["elsewhere"], "elsewhere is not a folder in"),
        (["recipes/a/b"], "recipes/a/b is not a folder in"),
        (["recipes/x", "--from", "recipes/sweep"], "it has no stage prepare_data"),
        (["recipes/x", "--without", "sample"], "--without sample: decode cannot do without it"),
        (["recipes/x", "--without", "evaluate"], "--without evaluate: the table cannot do without it"),
        (["recipes/x", "--set", "train_second_classifier.classifier=conv"], "'conv' is the first one's too"),
        (["recipes/x", "--without", "nosuch"], "--without nosuch: unknown stage; known are prepare_data"),
        (["recipes/x", "--set", "sample.stepz=3"], "unknown parameter 'sample.stepz'"),
        (["recipes/x", "--set", "prepare_data.dataset=folder"], "--set prepare_data.dataset=folder: which one? Add --set prepare_data.root=FOLDER"),
        (["recipes/x", "--set", "sample.steps=0"], "sample.steps: 0 will not do"),
        (["recipes/x", "--from", "docs"], "docs/params.yaml is missing"),
    ],
)
def test_a_recipe_that_cannot_be(copy, arguments, words):
    done = run_in(copy, *command("new_recipe"), *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (copy / "recipes/x").exists()
