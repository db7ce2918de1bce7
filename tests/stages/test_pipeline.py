"""The whole pipeline on a few hundred real digits: DVC, stages by hand, and the Python interface."""

import json
import os
import re
import shutil
import sys
from copy import copy as shallow_copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, change, run_in, run_stage
from dvc.repo import Repo
from PIL import Image

import ldm
from ldm import artifacts, errors, images
from ldm.metrics.memorisation import Search, thresholds
from ldm.networks.classifier import Classifier, in_batches
from stages import train_vae
from stages.evaluate import CHIEF, images_per_row, without_twins
from stages.runner import read_yaml

pytestmark = pytest.mark.slow
CLASSIFIERS = ["train_classifier", "train_second_classifier"]
ROWS = ["random", "vae_prior", "reconstruction", "diffusion", "test_images"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # as the run of the fixture, bit for bit


@pytest.fixture
def copy(project, tmp_path) -> Path:
    """A copy of the finished project, to change."""
    return shutil.copytree(project, tmp_path / "copy")


@pytest.fixture(scope="module")
def unchanged(project, tmp_path_factory) -> Path:
    """A copy of the finished project, of which a test changes one file and puts it back."""
    return shutil.copytree(project, tmp_path_factory.mktemp("unchanged") / "copy")


def stages_to_run(folder: Path) -> set[str]:
    """The stages that `dvc repro` would run whatever the others' new outputs are."""
    with Repo(str(folder)) as repo:
        found = repo.status(targets=[str(folder / "dvc.yaml")])
        return {name.rpartition(":")[2] for name in found} - {"report"}


def load(folder: Path, stage: str, kind: str) -> artifacts.Artifact:
    return artifacts.load(folder / f"artifacts/{stage}/{kind}.safetensors", kind)


def stage(folder: Path, name: str, out: Path, *arguments: str):
    return run_stage(folder, name, *arguments, "--out", str(out))


def test_a_second_repro_does_nothing(project):
    before = (project / "dvc.lock").read_bytes()
    done = run_in(project, "dvc", "repro")
    assert done.returncode == 0
    assert re.findall("Running stage '(.*)'", done.stdout) == ["report"]
    assert (project / "dvc.lock").read_bytes() == before
    assert (project / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()


def test_no_stage_writes_a_gitignore(project):
    assert [path for path in project.rglob(".gitignore") if ".dvc" not in path.parts] == [project / ".gitignore"]
    listed = run_in(project, "git", "status", "--short", "--untracked-files=all", "--", "artifacts").stdout
    assert re.findall(r"\S+\.safetensors", listed) == ["artifacts/export/model.safetensors"]  # the one that git holds
    assert "artifacts/metrics/diffusion.json" in listed


def test_the_run_cache_gives_back_what_was_made_before(copy):
    wanted = (copy / "artifacts/sample/samples.safetensors").read_bytes()
    for steps in (5, 6):  # 6 are those of the fixture
        change(copy / "params.yaml", {"sample.steps": steps})
        done = run_in(copy, "dvc", "repro", "sample", **ONE_THREAD)
        assert done.returncode == 0, done.stderr
        assert ("Running stage 'sample'" in done.stdout) == (steps == 5)
    assert "Stage 'sample' is cached - skipping run" in done.stdout
    assert (copy / "artifacts/sample/samples.safetensors").read_bytes() == wanted


@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_a_cache_of_links_is_never_written_through(copy, kind):
    """A stage by hand, in the tracked place, replaces the link, and DVC brings back what was there."""
    path = copy / "artifacts/train_vae/vae.safetensors"
    wanted = path.read_bytes()
    for command in (["config", "cache.type", kind], ["checkout", "--relink", "dvc.yaml"]):
        assert run_in(copy, "dvc", *command).returncode == 0
    assert path.is_symlink() or path.stat().st_nlink == 2
    cached = next(p for p in (copy / ".dvc/cache").rglob("*") if p.is_file() and p.samefile(path))
    change(copy / "params.yaml", {"train_vae.seed": 1})
    done = run_in(copy, sys.executable, "-m", "stages.train_vae", **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() != wanted
    assert not path.is_symlink()
    assert cached.read_bytes() == wanted
    assert sorted(p.name for p in path.parent.iterdir()) == ["history.json", "metrics.json", "vae.safetensors"]
    assert run_in(copy, "dvc", "checkout", "--force", str(path)).returncode == 0
    assert path.read_bytes() == wanted


def test_artifacts_travel_by_a_remote(copy, tmp_path):
    """Push, clone, pull: then `dvc repro` has nothing to do."""
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org"]
    clone = tmp_path / "clone"
    for folder, *command in [
        (copy, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store")),
        (copy, "dvc", "push", "dvc.yaml"),
        (copy, "git", "add", "-A"),
        (copy, *git, "commit", "-q", "-m", "Reference"),
        (tmp_path, "git", "clone", "-q", str(copy), str(clone)),
        (clone, "dvc", "pull", "dvc.yaml"),
        (clone, "dvc", "repro"),
    ]:
        done = run_in(folder, *command)
        assert done.returncode == 0, done.stderr
    assert re.findall("Running stage '(.*)'", done.stdout) == ["report"]
    tensors = list(copy.glob("artifacts/*/*.safetensors"))
    assert len(tensors) == 11
    for path in tensors:
        assert (clone / path.relative_to(copy)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("settings", "rerun"),
    [
        ({"evaluate.seed": 1}, ["evaluate"]),
        ({"decode.columns": 5}, ["decode"]),
        ({"sample.sampler": "euler"}, ["sample"]),
        ({"sample.samplers.dpmpp_2m": {}}, ["sample"]),  # a stage depends on its whole section
        ({"train_diffusion.schedule": "cosine"}, ["train_diffusion"]),
        ({"train_diffusion.network": "conv_unet"}, ["train_diffusion", "sample", "export"]),
        ({"train_second_classifier.seed": 2}, ["train_second_classifier"]),
        ({"train_classifier.classifiers.conv.width": 8}, ["train_classifier"]),
    ],
)
def test_a_parameter_reruns_what_it_can_affect(unchanged, settings, rerun):
    params = unchanged / "params.yaml"
    text = params.read_text()
    change(params, settings)
    found = stages_to_run(unchanged)
    params.write_text(text)
    assert found == set(rerun)


@pytest.mark.parametrize(
    ("file", "rerun"),
    [
        ("ldm/networks/mlp.py", []),
        ("ldm/networks/unet.py", ["train_diffusion", "sample", "export"]),
        ("ldm/sampling/reverse.py", ["sample", "export"]),
        ("ldm/diffusion/loss.py", ["train_diffusion", "sample", "export"]),
        ("ldm/training/loop.py", [*CLASSIFIERS, "train_vae", "train_diffusion"]),
        ("ldm/networks/classifier.py", [*CLASSIFIERS, "extract_features", "train_vae", "evaluate"]),
        ("ldm/metrics/frechet.py", ["train_vae", "evaluate", "memorisation"]),
        ("ldm/data/known.py", ["prepare_data"]),
        ("ldm/model.py", ["export"]),
        ("ldm/data/__pycache__/x.py", []),
        ("ldm/errors.py", []),
        ("stages/train_vae.py", ["train_vae"]),
        ("stages/runner/figures.py", ["memorisation"]),
        ("stages/runner/fit.py", []),
        ("tools/check.py", []),
    ],
)
def test_an_edit_reruns_what_it_can_affect(unchanged, file, rerun):
    path = unchanged / file
    path.parent.mkdir(exist_ok=True)
    before = path.read_text() if path.exists() else None
    path.write_text((before or "") + "\n# edited\n")
    found = stages_to_run(unchanged)
    path.unlink() if before is None else path.write_text(before)
    assert found == set(rerun)


def test_the_table(project):
    done = run_in(project, "dvc", "metrics", "show", *(f"artifacts/metrics/{row}.json" for row in ROWS))
    assert done.returncode == 0
    assert all(f"{row}.json" in done.stdout for row in ROWS)
    table = {row: json.loads((project / f"artifacts/metrics/{row}.json").read_text()) for row in ROWS}
    for values in table.values():
        assert list(values) == CHIEF
        assert values["within_test"] is None  # of 30 images a class
        assert (values["data"], values["n"]) == ("mnist-5k-limit-300", 300)
        assert values["fid_test"] == pytest.approx(values["fid"] / table["test_images"]["fid"], rel=1e-3)  # four digits
    assert max(map(len, done.stdout.splitlines())) <= 160  # a terminal's width
    assert table["test_images"]["fid_test"] == 1
    assert table["random"]["fid_test"] > 10
    assert (table["random"]["agree"], table["vae_prior"]["agree"]) == (None, None)
    every = json.loads((project / "artifacts/report/measures.json").read_text())
    for row, values in every.items():
        assert {key: values[key] for key in CHIEF} == table[row]
    assert every["test_images"]["copies"] == pytest.approx(0, abs=1e-6)
    metrics = read_yaml(project / "dvc.yaml")["metrics"]
    assert len(metrics) == 9
    for path in metrics:  # every metric file names its data
        assert json.loads((project / path).read_text())["data"] == "mnist-5k-limit-300"


def test_training_curves(project):
    for name in (*CLASSIFIERS, "train_vae", "train_diffusion"):
        curve = json.loads((project / f"artifacts/{name}/history.json").read_text())
        steps = [row["step"] for row in curve]
        assert steps == list(range(10, steps[-1] + 1, 10))
        assert curve[-1]["validation_loss"] is not None
        assert curve[-1]["loss"] < curve[0]["loss"]


def pixels(path: Path, scale: int = 2) -> np.ndarray:
    """A picture as it was before it was enlarged."""
    with Image.open(path) as picture:
        return np.asarray(picture)[::scale, ::scale]


def test_figures_show_the_images(project):
    folder = project / "artifacts/decode"
    generated = load(project, "decode", "generated")["images"]
    config = read_yaml(project / "params.yaml")["decode"]
    shown = generated[: config["columns"] * config["rows"]]
    assert np.array_equal(pixels(folder / "grid.png"), images.tile(shown, config["columns"]))
    with Image.open(folder / "denoising.gif") as animation:
        assert animation.n_frames == 6 + 1  # the noise, and a state after each step
        animation.seek(6)
        last = np.asarray(animation.convert("L"))[::2, ::2].astype(int)
    assert np.abs(last - images.tile(generated[:10], 10)).max() <= 2  # decoded in another batch, and so rounded
    originals = load(project, "prepare_data", "images")["validation_images"][:20]
    pairs = pixels(folder / "reconstructions.png")
    assert pairs.shape == (2 * 30 + 2, 20 * 30 + 2)
    assert np.array_equal(pairs[:32], images.tile(originals, 20))
    below = np.stack([pairs[32:60, 2 + 30 * i : 30 + 30 * i] for i in range(20)])
    assert np.corrcoef(below.ravel(), originals.numpy().ravel())[0, 1] > 0.3  # of 40 steps; noise has 0


def test_plots(project):
    done = run_in(project, "dvc", "plots", "show", "dvc.yaml")
    assert done.returncode == 0, done.stderr
    page = (project / "dvc_plots/index.html").read_text()
    figures = ["scores.png", "closest_pairs.png", "grid.png", "denoising.gif", "reconstructions.png"]
    assert [word for word in (*figures, "predicted", "validation_loss") if word not in page] == []
    assert "recipes" not in page


def test_latents_moments_are_those_of_the_whole_train_split(project):
    latents = load(project, "encode_latents", "latents")
    mean, variance = latents["train_mean"].double(), latents["train_log_variance"].double().exp()
    second = (mean.square() + variance).mean((0, 2, 3))
    torch.testing.assert_close(latents["channel_mean"], mean.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    deviation = (second - latents["channel_mean"] ** 2).sqrt()
    torch.testing.assert_close(latents["channel_std"], deviation, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settings", [["first=17", "n=1"], ["batch_size=37"]])
def test_batch_size_and_index_never_change_a_sample(project, tmp_path, settings):
    done = stage(project, "sample", tmp_path, *(a for s in settings for a in ("--set", s)))
    assert done.returncode == 0, done.stderr
    wanted = load(project, "sample", "samples")["samples"]
    found = artifacts.load(tmp_path / "samples.safetensors", "samples")["samples"]
    torch.testing.assert_close(found, wanted[17:18] if "n=1" in settings else wanted, rtol=1e-4, atol=1e-4)


def test_latents_of_another_vae_are_refused(project, tmp_path):
    done = stage(project, "train_vae", tmp_path, "--set", "seed=1", "--set", "optimisation.steps=1")
    assert done.returncode == 0, done.stderr
    done = stage(project, "decode", tmp_path / "out", "--in", f"vae={tmp_path}/vae.safetensors")
    assert done.returncode == 2
    assert "do not belong together" in done.stderr
    assert f"{tmp_path}/vae.safetensors" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


def test_a_classifier_of_other_images_is_refused_before_the_autoencoder_is_trained(project, tmp_path):
    assert stage(project, "prepare_data", tmp_path, "--set", "seed=1").returncode == 0
    done = stage(project, "train_vae", tmp_path / "out", "--in", f"images={tmp_path}/images.safetensors")
    assert done.returncode == 2
    assert "classifier.safetensors do not belong together" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_failing_stage_fails_the_repro(copy):
    change(copy / "params.yaml", {"sample.n": 100})
    done = run_in(copy, "dvc", "repro")
    assert done.returncode == 255
    assert "evaluate: 300 images per row: 100 are generated; lower evaluate.n or raise sample.n" in done.stderr


def test_divergence_keeps_the_last_good_weights(copy, tmp_path):
    changes = ["lr=0.01", "clip_norm=1e30", "max_skipped=1", "warmup=0"]
    arguments = [a for s in changes for a in ("--set", f"optimisation.{s}")]
    script = "import sys, ldm.diffusion as d, stages.train_diffusion as m; old, taken = d.Objective.__call__, []; "
    script += "d.Objective.__call__ = lambda *a: old(*a) * (1 if len(taken) < 12 else float('nan')) "
    script += "+ 0 * (taken.append(1) or 0); sys.argv[0] = 'train_diffusion'; m.main()"
    done = run_in(copy, sys.executable, "-c", script, *arguments, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    remedy = "try a lower lr (now 0.01) or muon_lr (now 0.02) or a smaller clip_norm (now 1e+30)"
    assert f"had a non-finite loss or gradient; {remedy}" in done.stderr
    kept = "checkpoints/train_diffusion/last_good.safetensors"
    assert f"the last good weights are in {kept}" in done.stderr
    weights = artifacts.load(copy / kept, "weights").tensors
    assert weights.keys() == load(copy, "train_diffusion", "denoiser").tensors.keys()
    assert all(x.isfinite().all() and x.abs().max() < 10 for x in weights.values())
    assert any(x.std() > 0.01 for x in weights.values())
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"history.json"}


def test_readme_example_samples_digits(project, monkeypatch):
    """The few lines of the README, on this project's artifacts."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    block = next(block for block in blocks if "import ldm" in block)
    assert len([line for line in block.splitlines() if line]) <= 6
    monkeypatch.chdir(project)
    names: dict = {}
    exec(block, names)
    assert names["images"].dtype == torch.uint8
    difference = names["images"].int() - load(project, "decode", "generated")["images"][: len(names["images"])].int()
    assert difference.abs().max() <= 2  # the digits that the stages made, up to rounding


def test_python_interface_takes_other_samplers(project, monkeypatch):
    model = ldm.load(project / "artifacts")
    drawn = model.sample(3, seed=1, sampler={"ddim": {"eta": 0.5}}, steps=4)
    assert drawn.shape == (3, 1, 28, 28)
    alone = model.sample(1, seed=1, first=2, sampler={"ddim": {"eta": 0.5}}, steps=4)
    assert (alone[0].int() - drawn[2].int()).abs().max() <= 2
    assert not torch.equal(model.sample(3, seed=1), drawn)
    assert torch.equal(model.sample(2, seed=1, label=np.int64(3)), model.sample(2, seed=1, label=3))
    assert not torch.equal(model.sample(2, seed=1, label=3), model.sample(2, seed=1, label=4))
    assert torch.equal(model.sample(np.int64(2), seed=np.int64(1), first=np.int64(1)), model.sample(3, seed=1)[1:])
    assert not torch.equal(model.sample(3, seed=1, spacing="karras"), model.sample(3, seed=1))
    few = replace(model, sampling={**model.sampling, "batch_size": 2}).sample(5, seed=1)
    assert (few.int() - model.sample(5, seed=1).int()).abs().max() <= 2
    several = model.sample(3, seed=1, label=[4, "3", 4])
    assert model.labels(3, label=[4, "3", 4]).tolist() == [4, 3, 4]
    assert (several[0].int() - model.sample(1, seed=1, label=4)[0].int()).abs().max() <= 2
    assert torch.equal(model.sample(3, seed=1, label=model.labels(3, label=[4, "3", 4])), several)
    shifted = [str(digit + 1) for digit in range(10)]  # the class of index 1 is called 2
    renamed = replace(model, denoiser=shallow_copy(model.denoiser))
    renamed.denoiser.class_names = shifted
    assert renamed.labels(2, label="2").tolist() == renamed.labels(2, label=1).tolist() == [1, 1]
    assert renamed.labels(3, label=[0, 1, "1"]).tolist() == [0, 1, 0]
    assert torch.equal(renamed.sample(2, seed=1, label="2"), model.sample(2, seed=1, label=1))
    assert torch.equal(renamed.sample(2, seed=1, label=np.array([1, 1])), model.sample(2, seed=1, label=1))
    assert model.labels(2, label=[torch.tensor(4), 3]).tolist() == [4, 3]
    assert len(repr(model)) < 5000  # without the weights, which are thousands of lines
    several[0] += 1  # a plain tensor, which may be edited
    assert model.labels(2, first=5).tolist() == load(project, "sample", "samples")["labels"][5:7].tolist()
    mistakes: list[tuple[dict, str]] = [
        ({"n": 0}, "n 0: a whole number from 1 to 1000000000 is wanted"),
        ({"n": 1.5}, "n 1.5: a whole number from 1"),
        ({"n": True}, "n True: a whole number from 1"),
        ({"n": 2**70}, f"n {2**70}: a whole number from 1"),
        ({"n": 1, "seed": 10**5000}, "seed this int: a whole number from 0"),
        ({"n": 1, "label": [torch.tensor([1, 2])]}, r"label \[1, 2\]: the denoiser was not trained on this class"),
        ({"n": 1, "seed": -1}, "seed -1: a whole number from 0"),
        ({"n": 1, "first": -3}, "first -3: a whole number from 0"),
        ({"n": 3, "label": [1, 2]}, r"label \[1, 2\]: a class that was trained on is wanted for each of 3 images"),
        ({"n": 2, "label": [1, 11]}, "label 11: the denoiser was not trained on this class"),
        ({"n": 2, "label": torch.tensor([1.0, 2.0])}, "label 1.0: the denoiser was not trained on this class"),
        ({"n": 1, "steps": 2.5}, "steps 2.5: a whole number from 1 to"),
        ({"n": 1, "steps": "x"}, "steps 'x': a whole number from 1 to"),
        ({"n": 1, "steps": 10**13}, "steps 10000000000000: a whole number from 1 to 1000000000 is wanted"),
        ({"n": 1, "sampler": {}}, "sampler {}: write its name, or {name: options}"),
        ({"n": 1, "sampler": {"ddim": {}, "heun": {}}}, "write its name, or {name: options}"),
        ({"n": 1, "spacing": 5}, "spacing 5: write its name, or {name: options}"),
    ]
    for wrong, words in mistakes:
        with pytest.raises(errors.InputError, match=words):
            model.sample(**wrong)
    with pytest.raises(errors.InputError, match="known are ddim"):
        model.sample(1, sampler="nosuch")
    for device in ("gpu", "cuda:99", "meta"):
        with pytest.raises(errors.InputError, match=f"device '{device}': .*; choose cpu, or cuda where"):
            ldm.load(project / "artifacts", device)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # of a GPU that torch cannot use
    monkeypatch.setattr("torch.zeros", Mock(side_effect=RuntimeError("no kernel image\nis available")))
    with pytest.raises(errors.InputError, match="device 'cuda': no kernel image; choose cpu"):
        ldm.load(project / "artifacts")
    monkeypatch.undo()
    with pytest.raises(
        errors.InputError, match=r"/artifacts/sample holds no artifacts of a pipeline; name a model file"
    ):
        ldm.load(project / "artifacts/sample")
    for path in ("a\0b", 5, None):
        with pytest.raises(errors.InputError, match=r"is no path; name a file of Model\.save, or a folder"):
            ldm.load(path)
        with pytest.raises(errors.InputError, match="is no path"):
            model.save(path)
    with pytest.raises(errors.InputError, match="artifacts is a folder; name a file in it"):
        model.save(project / "artifacts")
    with pytest.raises(
        errors.InputError, match=r"nosuch/a\.safetensors: there is no folder .*nosuch; make it, or name"
    ):
        model.save(project / "nosuch/a.safetensors")
    assert not (project / "nosuch").exists()
    with pytest.raises(errors.InputError, match=r"samplers\.ddim\.eta: -1\.0 will not do"):
        model.sample(1, sampler={"ddim": {"eta": -1.0}})


def test_results_are_written_before_figures(project, tmp_path):
    """Where figures cannot be drawn, the shares are there."""
    (tmp_path / "matplotlib.py").write_text("raise SystemExit('no figures')")
    path = os.pathsep.join([str(tmp_path), str(project)])
    words = (sys.executable, "-m", "stages.memorisation", "--out", str(tmp_path / "out"))
    done = run_in(project, *words, **ONE_THREAD, PYTHONPATH=path)
    assert done.returncode == 1
    assert "no figures" in done.stderr
    for name in ("memorisation.json", "closest_pairs.png"):
        assert (tmp_path / "out" / name).read_bytes() == (project / "artifacts/report" / name).read_bytes()
    assert not (tmp_path / "out/scores.png").exists()


def test_the_autoencoder_is_warned_of_where_it_is_the_limit(project, capsys):
    """The ratio to the floor is 1 of the images themselves, and far more of noise."""
    features = load(project, "extract_features", "features")["train"]
    inputs = {
        "classifier": load(project, "train_classifier", "classifier"),
        "features": {"train": features[1::2], "validation": features[::2]},  # of the validation images are too few
    }
    run: Any = SimpleNamespace(name="train_vae", device="cpu")
    pictures = load(project, "prepare_data", "images")["train_images"][::2]
    assert train_vae.ratio_to_floor(run, inputs, pictures, None) == pytest.approx(1, abs=1e-3)
    assert capsys.readouterr().err == ""
    noise = torch.randint(256, pictures.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert train_vae.ratio_to_floor(run, inputs, noise, None) > 10
    assert "times as far from the training images as the images themselves" in capsys.readouterr().err


def test_images_of_one_class_are_not_scored(project, tmp_path):
    assert stage(project, "sample", tmp_path, "--set", "label=7").returncode == 0
    samples, generated = tmp_path / "samples.safetensors", tmp_path / "generated.safetensors"
    assert stage(project, "decode", tmp_path, "--in", f"samples={samples}").returncode == 0
    done = stage(project, "evaluate", tmp_path, "--in", f"generated={generated}")
    assert done.returncode == 2
    assert "the generated images are all of class 7" in done.stderr
    assert "set sample.label to null" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "diffusion.json").exists()


def test_classes_that_no_training_image_has_are_refused(project, tmp_path):
    made = load(project, "decode", "generated")
    labels = made["labels"].clone()
    labels[7] = 12
    path = tmp_path / "generated.safetensors"
    lineage = [load(project, name, kind) for name, kind in (("prepare_data", "images"), ("sample", "samples"))]
    artifacts.save(path, "generated", {"images": made["images"], "labels": labels}, made.config, lineage)
    done = stage(project, "evaluate", tmp_path, "--in", f"generated={path}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("no training image is of class 12; decode other samples")
    assert not (tmp_path / "diffusion.json").exists()


def test_a_row_without_spread_leaves_the_others(project, tmp_path):
    made = load(project, "decode", "generated")
    path = tmp_path / "generated.safetensors"
    lineage = [load(project, name, kind) for name, kind in (("prepare_data", "images"), ("sample", "samples"))]
    one = {"images": made["images"][:1].expand_as(made["images"]), "labels": made["labels"]}
    artifacts.save(path, "generated", one, made.config, lineage)
    done = stage(project, "evaluate", tmp_path, "--in", f"generated={path}")
    assert done.returncode == 0, done.stderr
    assert "diffusion: null are fid, since features: all 300 samples are equal, so that they have no" in done.stderr
    rows = json.loads((tmp_path / "measures.json").read_text())
    before = json.loads((project / "artifacts/report/measures.json").read_text())
    assert rows.pop("diffusion")["fid_test"] is None
    assert rows == {name: row for name, row in before.items() if name != "diffusion"}


def test_images_of_another_shape_are_refused(project, tmp_path):
    made = load(project, "decode", "generated")
    path = tmp_path / "generated.safetensors"
    lineage = [load(project, name, kind) for name, kind in (("prepare_data", "images"), ("sample", "samples"))]
    small = {"images": made["images"][..., :20, :20], "labels": made["labels"]}
    artifacts.save(path, "generated", small, made.config, lineage)
    for name in ("evaluate", "memorisation"):
        done = stage(project, name, tmp_path / name, "--in", f"generated={path}")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith("do not belong together: their images differ in shape")


def test_twins_of_training_images_are_left_out_of_the_table(project, capsys):
    pictures, features = load(project, "prepare_data", "images"), load(project, "extract_features", "features")
    same = without_twins(pictures, features, ["test", "validation"])
    for given, kept in ((pictures, same["images"]), (features, same["features"])):
        assert all(torch.equal(kept[name], given[name]) for name in given.tensors)
    twin = pictures["test_images"].clone()
    twin[[3, 7]] = pictures["train_images"][[5, 5]]
    copied = replace(pictures, tensors=pictures.tensors | {"test_images": twin})
    kept = without_twins(copied, features, ["test"])
    rest = [i for i in range(len(twin)) if i not in (3, 7)]
    assert torch.equal(kept["images"]["test_labels"], pictures["test_labels"][rest])
    assert torch.equal(kept["features"]["test_second"], features["test_second"][rest])
    assert torch.equal(kept["features"]["train"], features["train"])
    assert capsys.readouterr().out == "evaluate: 2 test images are equal to a training image, and left out\n"


def test_one_row_of_validation_images_alone(project, tmp_path):
    """What a choice is made by: no measure of it has seen a test image."""
    done = stage(project, "evaluate", tmp_path, "--set", "final=false", "--set", "row=validation_images")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "measures.json").read_text()).items()
    assert row[0] == "validation_images"
    assert row[1]["fid_val"] == 1
    assert not [key for key in row[1] if "test" in key or key == "copies"]


def test_no_row_has_more_images_than_its_split():
    images = {"train_images": range(9), "validation_images": range(4), "test_images": range(6)}
    for rows, split, n in (
        (["diffusion"], "test", 6),
        (["diffusion"], "validation", 4),
        (["diffusion", "validation_images"], "test", 4),
    ):
        assert images_per_row(100, images, rows, split) == n
    assert images_per_row(2, images, ["validation_images"], "test") == 2


def test_the_second_classifier_is_another_one(project, tmp_path):
    kinds = ("classifier", "second_classifier")
    first, second = (load(project, f"train_{kind}", kind) for kind in kinds)
    assert first.config["classifier"] != second.config["classifier"]
    assert first.config["seed"] != second.config["seed"]
    features, real = load(project, "extract_features", "features"), load(project, "prepare_data", "images")
    for artifact, suffix in ((first, ""), (second, "_second")):
        found = in_batches(Classifier.from_artifact(artifact).features, real["test_images"][:50])
        torch.testing.assert_close(features[f"test{suffix}"][:50], found, rtol=1e-4, atol=1e-4)
    row = json.loads((project / "artifacts/report/measures.json").read_text())["random"]
    assert row["second_test"] != row["fid_test"]
    changes = ["--set", "classifier=conv", "--set", "optimisation.steps=1"]
    train = stage(project, "train_second_classifier", tmp_path, *changes)
    assert train.returncode == 0, train.stderr
    given = f"second_classifier={tmp_path / 'second_classifier.safetensors'}"
    done = stage(project, "extract_features", tmp_path / "out", "--in", given)
    assert done.returncode == 2
    assert "both" in done.stderr
    assert "'conv'" in done.stderr


def test_a_guide_of_another_training_is_refused(project, tmp_path):
    changes = ["seed=1", "optimisation.steps=1", "optimisation.record_every=1", "guide_step=1"]
    train = stage(project, "train_diffusion", tmp_path, *(a for s in changes for a in ("--set", s)))
    assert train.returncode == 0, train.stderr
    done = stage(project, "sample", tmp_path / "s", "--in", f"guide={tmp_path / 'guide.safetensors'}")
    assert done.returncode == 2
    words = r"sample: .*denoiser\.safetensors and .*guide\.safetensors do not belong together: .*\n"
    assert re.fullmatch(words, done.stderr), done.stderr


def test_mirrored_latents_are_refused(project, tmp_path):
    done = stage(project, "train_diffusion", tmp_path, "--set", "flip=0.5")
    assert done.returncode == 2
    assert "flip 0.5 mirrors images" in done.stderr


def test_the_report(project, tmp_path):
    table = (project / "artifacts/report/table.md").read_text().splitlines()
    assert table[0] == f"| measure | {' | '.join(ROWS)} |"
    every = json.loads((project / "artifacts/report/measures.json").read_text())
    assert [line.split(" | ")[0].strip("| ") for line in table[2:]] == list(every["diffusion"])
    found = json.loads((project / "artifacts/report/memorisation.json").read_text())
    generated, real = load(project, "decode", "generated")["images"], load(project, "prepare_data", "images")
    search = Search(real["train_images"], 10)
    score, which = search(generated)
    done = stage(project, "memorisation", tmp_path, "--set", "percentile=60.0")
    assert done.returncode == 0, done.stderr
    many = json.loads((tmp_path / "memorisation.json").read_text())
    assert found["found_shifted"] > 0.8
    assert many["found_decoded"] >= found["found_decoded"]
    labels, usual = real["train_labels"].long(), search(real["validation_images"].tensor_split(2)[0])
    for row, share in ((found, 0.0025), (many, 0.6)):
        limits = thresholds(usual.score, labels[usual.nearest], 10, share)
        assert row["copies"] == pytest.approx((score <= limits[labels[which]]).double().mean().item(), abs=1e-6)
    assert 0 < many["copies"] < 1  # a share that a wrong one would miss
    closest = score.argsort()[:12]
    shown = images.tile(torch.cat([generated[closest], real["train_images"][which[closest]]]), 12)
    assert np.array_equal(pixels(project / "artifacts/report/closest_pairs.png"), shown)
