"""tools.new_recipe: a user's own images, and other changes of the pipeline, without a line of Python."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, copy_project, run_here, run_in
from PIL import Image

from ldm import artifacts, images
from stages.runner import read_yaml, run_command
from tools import new_recipe as new_recipe_tool

pytestmark = pytest.mark.slow
FASHION = "recipes/fashion_ddpm"
GIT = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]


def settings_of(*settings: str) -> list[str]:
    return [argument for setting in settings for argument in ("--set", setting)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A small copy of the project, without results."""
    folder = copy_project(tmp_path_factory.mktemp("new_recipe") / "project")
    for file in folder.glob("recipes/*/dvc.lock"):
        file.unlink()
    for name in ("blog_ldm", "emoji"):  # of many stages, which each command of DVC reads
        shutil.rmtree(folder / "recipes" / name)
    return folder


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


@pytest.fixture
def new_recipe(copy, monkeypatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command, in this process."""
    monkeypatch.setattr(new_recipe_tool, "ROOT", copy)
    return partial(run_here, copy, partial(run_command, new_recipe_tool.command, "new_recipe"), "new_recipe")


def test_a_recipe_for_a_folder_of_images(copy, tmp_path):
    """As docs/recipes.md says: no Python, a few lines of YAML."""
    draw_images(tmp_path / "bars", 700)
    settings = ["prepare_data.dataset=folder", "prepare_data.source=auto", f"prepare_data.root={tmp_path / 'bars'}"]
    settings += ["prepare_data.limit=0", "evaluate.n=140", "memorisation.n=140", "sample.n=140"]
    settings += [f"train_{name}.optimisation.steps=10" for name in ("classifier", "second_classifier", "vae")]
    done = run_in(copy, sys.executable, "-m", "tools.new_recipe", "recipes/bars", *settings_of(*settings))
    assert done.returncode == 0, done.stderr
    before, after = (flat(read_yaml(path)) for path in (copy / "params.yaml", copy / "recipes/bars/params.yaml"))
    assert before.keys() <= after.keys()
    changed = {key for key in after if after[key] != before.get(key)}
    fitted: dict[str, object] = {"train_vae.likelihood": "gaussian", "train_vae.kl_weight": 0.2}  # steps: set above
    fitted |= {"train_vae.scaled": 0.0, "train_diffusion.networks.unet.width": 64, "sample.redraw": False}
    fitted |= {"train_diffusion.optimisation.batch_size": 256}
    assert after["train_diffusion.optimisation.steps"] == before["train_diffusion.optimisation.steps"] < 1000
    assert changed == {setting.partition("=")[0] for setting in settings} | set(fitted)
    assert {key: after[key] for key in fitted} == fitted
    assert str(tmp_path / "bars") in read_yaml(copy / "recipes/bars/dvc.yaml")["stages"]["prepare_data"]["deps"]
    assert "dvc metrics show recipes/bars/artifacts/metrics/*.json" in done.stdout
    done = run_in(copy, "dvc", "repro", "recipes/bars/dvc.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = copy / "recipes/bars"
    row = json.loads((folder / "artifacts/metrics/diffusion.json").read_text())
    assert (row["data"], row["n"]) == ("bars", 140)
    generated = artifacts.load(folder / "artifacts/decode/generated.safetensors", "generated")["images"]
    assert generated.shape == (140, 3, 16, 12)
    with Image.open(folder / "artifacts/decode/grid.png") as grid:
        assert np.array_equal(np.asarray(grid)[::2, ::2], images.tile(generated[:200], 20))
    experiments_work(copy, folder)
    draw_images(tmp_path / "bars", 706)  # six more: the first 700 are those that were there
    done = run_in(copy, "dvc", "status", "recipes/bars/dvc.yaml")
    assert "prepare_data" in done.stdout


@pytest.mark.parametrize(("batch_size", "steps"), [(None, 1600), (160, 2600), (32, 3000)])
def test_the_steps_follow_the_batch_that_is_set(monkeypatch, batch_size, steps):
    """Of 2,000 pictures 1,400 are for training, and 300 times as many are shown: 420,000, in 3,000 steps at most."""
    monkeypatch.setattr(new_recipe_tool, "of_folder", lambda config: ((3, 32, 32), 2000))
    settings = ["prepare_data.dataset=folder", "prepare_data.root=pictures"]
    settings += [f"train_diffusion.optimisation.batch_size={batch_size}"] if batch_size else []
    fitted = new_recipe_tool.fitting_settings(read_yaml(ROOT / "params.yaml"), settings, own_sizes=False)
    assert f"train_diffusion.optimisation.steps={steps}" in fitted


@pytest.mark.parametrize(("count", "dropout"), [(10_900, True), (11_000, False)])
def test_a_network_that_sees_a_picture_often_takes_dropout(monkeypatch, count, dropout):
    """3,000 steps of 256 show each of 7,680 training pictures 100 times."""
    monkeypatch.setattr(new_recipe_tool, "of_folder", lambda config: ((3, 32, 32), count))
    settings = ["prepare_data.dataset=folder", "prepare_data.root=pictures"]
    fitted = new_recipe_tool.fitting_settings(read_yaml(ROOT / "params.yaml"), settings, own_sizes=False)
    assert ("train_diffusion.networks.unet.dropout=0.1" in fitted) == dropout
    settings += ["train_diffusion.network=mlp", "train_diffusion.class_labels=false"]
    fitted = new_recipe_tool.fitting_settings(read_yaml(ROOT / "params.yaml"), settings, own_sizes=False)
    assert not [text for text in fitted if "dropout" in text]


def test_a_small_folder_of_the_shape_of_mnist_has_fewer_steps_too(monkeypatch):
    """Of 1,000 pictures 700 are for training: 210,000 shown are 800 steps, and 1,000 are the fewest."""
    monkeypatch.setattr(new_recipe_tool, "of_folder", lambda config: ((1, 28, 28), 1000))
    settings = ["prepare_data.dataset=folder", "prepare_data.root=pictures"]
    fitted = new_recipe_tool.fitting_settings(read_yaml(ROOT / "params.yaml"), settings, own_sizes=False)
    assert "train_diffusion.optimisation.steps=1000" in fitted
    assert not [text for text in fitted if ".width=" in text or ".batch_size=" in text]  # those of MNIST fit


@pytest.mark.parametrize(("side", "scales"), [(8, False), (9, True)])
def test_an_autoencoder_scales_where_its_grid_has_a_smaller_one(monkeypatch, side, scales):
    """In patches of 4 pixels, 8 pixels are 2 places, and 9 are 3."""
    monkeypatch.setattr(new_recipe_tool, "of_folder", lambda config: ((1, side, side), 4000))
    settings = ["prepare_data.dataset=folder", "prepare_data.root=pictures"]
    fitted = new_recipe_tool.fitting_settings(read_yaml(ROOT / "params.yaml"), settings, own_sizes=False)
    assert ("train_vae.scaled=0.0" not in fitted) == scales


def test_a_few_pictures_get_a_table_of_what_can_be_said(copy, new_recipe, tmp_path):
    """12 of each class, of two sizes and one of a pixel, in folders with names for which YAML and figures have uses."""
    root = tmp_path / "a: b #1 ${y}"
    draw_images(root, 36)
    for before, after in (("b", "$x$"), ("c", "桜")):
        (root / before).rename(root / after)
    Image.new("L", (30, 9), 5).save(root / "a/other.jpg")
    Image.new("L", (1, 1), 5).save(root / "a/one.png")
    settings = ["prepare_data.dataset=folder", f"prepare_data.root={root}", "prepare_data.size=[13, 9]"]
    settings += ["prepare_data.limit=0", "prepare_data.source=auto", "train_diffusion.optimisation.batch_size=8"]
    settings += [f"train_{name}.optimisation.steps=10" for name in ("classifier", "second_classifier", "vae")]
    done = new_recipe("recipes/few", *settings_of(*settings, "train_diffusion.networks.unet.width=16"))
    assert done.returncode == 0, done.stderr
    done = run_in(copy, "dvc", "repro", "recipes/few/dvc.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    measures = json.loads((copy / "recipes/few/artifacts/report/measures.json").read_text())["diffusion"]
    assert measures["n"] == 7  # 3 of a, 2 of the others
    assert "training images are too few to tell whether the autoencoder is the limit" in done.stderr
    page = (copy / "recipes/few/artifacts/report/report.html").read_text("utf-8")
    svgs = [base64.b64decode(text).decode() for text in re.findall(r"image/svg\+xml;base64,([\w+/=]+)", page)]
    assert any(">桜</text>" in svg and ">$x$</text>" in svg for svg in svgs)
    assert measures["fid"] is None
    assert "fid_test" not in measures
    assert None not in [measures[key] for key in ("agree", "agree_second", "precision", "coverage", "label_tv")]


def test_links_in_a_folder_are_seen_by_dvc(copy, new_recipe, tmp_path):
    """A picture below a linked class is one more; a link to nothing and a pipe are refused before DVC fails at them."""
    draw_images(tmp_path / "bars", 30)
    (tmp_path / "bars/c").rename(tmp_path / "far")
    (tmp_path / "bars/c").symlink_to(tmp_path / "far")
    folder = settings_of("prepare_data.dataset=folder", f"prepare_data.root={tmp_path / 'bars'}/")
    done = new_recipe("recipes/linked", *folder, "--from", FASHION)
    assert done.returncode == 0, done.stderr
    deps = read_yaml(copy / "recipes/linked/dvc.yaml")["stages"]["prepare_data"]["deps"]
    assert {str(tmp_path / "bars"), str(tmp_path / "far")} < set(deps)
    values = read_yaml(copy / "recipes/linked/params.yaml")
    assert values["train_diffusion"]["networks"]["unet"]["patch"] == 4  # 16 × 12
    assert values["sample"]["n"] == values["evaluate"]["n"] == 200
    draw_images(tmp_path / "odd", 30)
    for path in (tmp_path / "odd").glob("*/*.png"):
        Image.open(path).resize((10, 14)).save(path)
    other = settings_of(f"prepare_data.root={tmp_path / 'odd'}")
    done = new_recipe("recipes/odd", *other, "--from", "recipes/linked")
    assert done.returncode == 0, done.stderr
    deps = read_yaml(copy / "recipes/odd/dvc.yaml")["stages"]["prepare_data"]["deps"]
    assert [dep for dep in deps if Path(dep).is_absolute()] == [str(tmp_path / "odd")]
    assert read_yaml(copy / "recipes/odd/params.yaml")["train_diffusion"]["networks"]["unet"]["patch"] == 2
    lost, odd_name = tmp_path / "odd/a/lost.png", os.fsencode(tmp_path) + b"/odd/a/\xff.png"
    for make, kind in (
        (lambda: lost.symlink_to("nowhere"), "a link to nothing"),
        (lambda: os.mkfifo(lost), "no file"),
        (lambda: Path(os.fsdecode(odd_name)).touch(), "named in no UTF-8"),
    ):
        make()
        done = new_recipe("recipes/lost", *other, "--from", "recipes/linked")
        assert done.returncode == 2
        assert re.search(f"odd/a/(lost|.).png is {kind}, at which DVC fails; mend or remove it", done.stderr)
        assert not (copy / "recipes/lost").exists()
        for path in (tmp_path / "odd/a").iterdir():
            if not path.stem.isdecimal():
                path.unlink()


def experiments_work(copy: Path, folder: Path) -> None:
    """`dvc exp run -S`, `dvc metrics diff` and `dvc plots diff` in the recipe's folder."""
    for line in (("add", "-A"), ("commit", "-qm", "Start")):
        assert run_in(copy, *GIT, *line).returncode == 0
    settings = ["-S", "++memorisation.percentile=2.0", "-S", "memorisation.seed=1"]  # params.yaml leaves out the first
    done = run_in(folder, "dvc", "exp", "run", *settings, PYTHONPATH=str(copy))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Running stage 'memorisation'" in done.stdout
    assert done.stdout.count("Running stage") == 2  # the report, always
    found = read_yaml(folder / "params.yaml")
    assert found["memorisation"] == {"seed": 1, "n": 140, "percentile": 2.0, "planted": 40}
    refused = run_in(folder, "dvc", "exp", "run", "-S", "evaluate.neighbours=9", PYTHONPATH=str(copy))
    assert refused.returncode != 0
    assert "not in struct" in refused.stderr
    assert "percentile" in run_in(folder, "dvc", "metrics", "diff").stdout
    own = sorted(path.relative_to(folder).as_posix() for path in folder.glob("artifacts/metrics/*.json"))
    shown = json.loads(run_in(folder, "dvc", "metrics", "show", "--json", *own).stdout)
    assert sorted(shown[""]["data"]) == own  # no other recipe's
    assert run_in(folder, "dvc", "plots", "diff").returncode == 0


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    """Dotted key → value."""
    items = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v} for k, v in values.items()]
    return {key: value for part in items for key, value in part.items()}


def test_a_recipe_takes_parameters_that_the_pipeline_leaves_out(copy, new_recipe):
    settings = settings_of("train_diffusion.optimisation.compile=true", "train_vae.optimisation.muon_lr=0.01")
    done = new_recipe("recipes/compiled", *settings)
    assert done.returncode == 0, done.stderr
    found = read_yaml(copy / "recipes/compiled/params.yaml")
    assert found["train_diffusion"]["optimisation"]["compile"] is True
    assert found["train_vae"]["optimisation"]["muon_lr"] == 0.01
    grouped = ["prepare_data.dataset=cifar10", "prepare_data.source=auto", "train_diffusion.networks.unet.norm=group"]
    done = new_recipe("recipes/grouped", *settings_of(*grouped))  # the fitting width has 32 groups
    assert done.returncode == 0, done.stderr


def test_a_recipe_without_an_autoencoder_is_that_of_pixels(copy, new_recipe):
    """It has the stages and outputs of fashion_ddpm, but for the figure that this has."""
    done = new_recipe("recipes/pixels", "--without", "train_vae")
    assert done.returncode == 0, done.stderr
    own, other = (read_yaml(copy / folder / "dvc.yaml")["stages"] for folder in ("recipes/pixels", FASHION))
    del other["draw_schedules"]
    other["report"]["deps"].remove(f"{FASHION}/artifacts/report/schedules.png")
    assert list(own) == list(other)
    for name, entry in own.items():
        moved = json.loads(json.dumps(entry).replace("recipes/pixels", FASHION))
        for key in ("cmd", "wdir", "params"):
            assert moved[key] == other[name][key], name
        assert sorted(map(str, moved["outs"])) == sorted(map(str, other[name]["outs"])), name
        read, expected = (
            {dep for dep in deps if "artifacts" in Path(dep).parts} for deps in (moved["deps"], other[name]["deps"])
        )
        assert read == expected, name
    assert run_in(copy, "dvc", "stage", "list", "recipes/pixels/dvc.yaml").returncode == 0


def test_a_recipe_from_another_is_the_same_in_its_own_folder(copy, new_recipe):
    done = new_recipe("recipes/clothes", "--from", FASHION, "--set", "train_diffusion.prediction=x0")
    assert done.returncode == 0, done.stderr
    own, other = (read_yaml(copy / folder / "dvc.yaml") for folder in ("recipes/clothes", FASHION))
    assert json.loads(json.dumps(own).replace("recipes/clothes", FASHION)) == other
    assert read_yaml(copy / "recipes/clothes/params.yaml")["train_diffusion"]["prediction"] == "x0"
    assert run_in(copy, "dvc", "stage", "list", "recipes/clothes/dvc.yaml").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recipes/toys"], "recipes/toys exists already"),
        (["elsewhere"], "elsewhere is not a folder in"),
        (["recipes/a/b"], "recipes/a/b is not a folder in"),
        (["recipes/x", "--from", "recipes/sweep"], "it has no stage prepare_data"),
        (["recipes/x", "--without", "sample"], "'sample' is not one of 'train_vae', 'memorisation'"),
        (["recipes/x", "--without", "evaluate"], "'evaluate' is not one of"),
        (["recipes/x", "--set", "train_second_classifier.classifier=conv"], "'conv' is the first one's"),
        (["recipes/x", "--without", "nosuch"], "'nosuch' is not one of"),
        (["recipes/x", "--set", "sample.stepz=3"], "sample.stepz: unknown parameter; known here are seed"),
        (
            [
                "recipes/x",
                *settings_of("prepare_data.dataset=folder", "prepare_data.root=~/no/such", "prepare_data.source=auto"),
            ],
            "/no/such is not a folder; prepare_data.root must hold one sub-folder of pictures per class",
        ),
        (
            ["recipes/x", *settings_of("prepare_data.dataset=folder", "prepare_data.source=auto")],
            "--set prepare_data.dataset=folder: which one? Add --set prepare_data.root=FOLDER",
        ),
        (
            ["recipes/x", "--set", "prepare_data.root=docs"],
            "docs does not hold mnist; for pictures add --set prepare_data.dataset=folder",
        ),
        (["recipes/x", "--set", "sample.steps=0"], "sample.steps: 0 will not do"),
        (["recipes/x", *settings_of("train_diffusion.networks.unet.norm=group")], "16 channels, not a multiple of 32"),
        (["recipes/x", "--set", "train_diffusion=3"], "train_diffusion: 3 will not do"),
        (["recipes/x", "--set", "train_diffusion.networks=null"], "train_diffusion.networks: None will not do"),
        (["recipes/x", "--set", "train_diffusion.networks.unet.patch=abc"], "networks.unet.patch: 'abc' will not do"),
        (["recipes/x", "--set", "sampel.steps=3"], "the section 'sampel' is unknown"),
        (["recipes/my pics"], "whose name has letters, digits, _, - and . alone"),
        (["recipes/x", "--from", "/usr"], "--from /usr: it is not in"),
        (["recipes/x", "--from", "docs"], "docs/dvc.yaml is missing"),
        (
            ["recipes/x", "--from", FASHION, *settings_of("prepare_data.dataset=folder", "prepare_data.root=/no/such")],
            "/no/such is not a folder",
        ),
    ],
)
def test_a_recipe_that_cannot_be(copy, new_recipe, arguments, words):
    done = new_recipe(*arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (copy / "recipes/x").exists()
