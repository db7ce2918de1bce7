"""The whole pipeline on a few hundred real digits: DVC, stages by hand, and the Python interface."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, change, run_in
from PIL import Image

import ldm
from ldm import artifacts, errors
from ldm.classifier import Classifier, in_batches
from stages import idx_files, prepare_data
from stages.cli import read_yaml

pytestmark = pytest.mark.slow
TRAINED = ["train_classifier", "train_second_classifier", "train_vae"]
ROWS = ["random", "vae_prior", "vae_reconstruction", "diffusion", "held_out"]


@pytest.fixture
def copy(project, tmp_path) -> Path:
    """A copy of the finished project, to change."""
    target = tmp_path / "copy"
    shutil.copytree(project, target)
    return target


def stages_to_run(folder: Path) -> list[str]:
    """The stages that `dvc repro` would run whatever the others' new outputs are."""
    done = run_in(folder, "dvc", "repro", "--dry")
    assert done.returncode == 0, done.stderr
    return re.findall(r"Running stage '(\w+)'", done.stdout)


def test_a_second_repro_does_nothing(project):
    before = (project / "dvc.lock").read_bytes()
    done = run_in(project, "dvc", "repro")
    assert done.returncode == 0
    assert "Running stage" not in done.stdout
    assert (project / "dvc.lock").read_bytes() == before
    assert (project / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()


def test_the_run_cache_gives_back_what_was_made_before(copy):
    wanted = (copy / "artifacts/sample/samples.safetensors").read_bytes()
    for steps in (5, 6):  # 6 are those of the fixture
        change(copy / "params.yaml", {"sample.steps": steps})
        done = run_in(copy, "dvc", "repro", "sample")
        assert done.returncode == 0, done.stderr
        assert ("Running stage 'sample'" in done.stdout) == (steps == 5)
    assert "Stage 'sample' is cached - skipping run" in done.stdout
    assert (copy / "artifacts/sample/samples.safetensors").read_bytes() == wanted


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
    assert "Running stage" not in done.stdout
    for path in copy.glob("artifacts/*/*.safetensors"):
        assert (clone / path.relative_to(copy)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("settings", "rerun"),
    [
        ({"evaluate.seed": 1}, ["evaluate"]),
        ({"decode.columns": 5}, ["decode"]),
        ({"sample.sampler": "euler"}, ["sample"]),
        ({"train_diffusion.schedules.cosine.s": 0.01, "sample.samplers.ddim.eta": 0.3}, []),
        ({"train_diffusion.schedule": "cosine"}, ["train_diffusion", "sample"]),
        ({"train_second_classifier.seed": 2}, ["train_second_classifier"]),
        ({"train_second_classifier.classifiers.conv.width": 8}, []),
        ({"train_classifier.classifiers.conv.width": 8}, ["train_classifier"]),
    ],
)
def test_a_parameter_reruns_what_it_can_affect(copy, settings, rerun):
    change(copy / "params.yaml", settings)
    assert sorted(stages_to_run(copy)) == sorted(rerun)


@pytest.mark.parametrize(
    ("file", "rerun"),
    [
        ("ldm/samplers/ddim.py", []),
        ("ldm/sampling.py", ["sample"]),
        ("ldm/pictures.py", ["decode", "memorisation"]),
        (
            "ldm/pixels.py",
            [*TRAINED, "extract_features", "encode_latents", "decode", "evaluate", "memorisation"],
        ),
        ("ldm/frechet.py", ["evaluate"]),
        ("ldm/classifiers/residual_model.py", ["train_second_classifier", "extract_features", "evaluate"]),
        ("ldm/__pycache__/x.py", []),
        ("stages/params.py", []),
    ],
)
def test_an_edit_reruns_what_it_can_affect(copy, file, rerun):
    path = copy / file
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + "\n# edited\n")
    assert sorted(stages_to_run(copy)) == sorted(rerun)


def test_the_table(project):
    done = run_in(project, "dvc", "metrics", "show", *(f"artifacts/metrics/{row}.json" for row in ROWS))
    assert done.returncode == 0
    assert all(f"{row}.json" in done.stdout for row in ROWS)
    table = {row: json.loads((project / f"artifacts/metrics/{row}.json").read_text()) for row in ROWS}
    for values in table.values():
        assert list(values)[:5] == ["data", "n", "fid", "fid_over_floor", "fid_test_over_floor"]
        assert list(values)[5:7] == ["fid_second", "fid_second_over_floor"]
        assert values["fid_infinity"] is None  # of 300 images
        assert len(values) == 17
        assert (values["data"], values["n"]) == ("mnist-5k-limit-300", 300)
    assert table["held_out"]["fid_over_floor"] == 1
    assert 0 <= table["held_out"]["fid_test_over_floor"] < 1e-6
    assert table["random"]["fid_over_floor"] > 10
    metrics = read_yaml(project / "dvc.yaml")["metrics"]
    assert len(metrics) == 9
    for path in metrics:  # every metric file names its data
        assert json.loads((project / path).read_text())["data"] == "mnist-5k-limit-300"


def test_training_curves(project):
    for stage in ("train_classifier", "train_vae", "train_diffusion"):
        curve = json.loads((project / f"artifacts/{stage}/history.json").read_text())
        assert [row["step"] for row in curve] == sorted(row["step"] for row in curve)
        assert curve[-1]["validation_loss"] is not None
        assert curve[-1]["loss"] < curve[0]["loss"]


def test_figures(project):
    folder = project / "artifacts/decode"
    with Image.open(folder / "grid.png") as grid:
        assert np.asarray(grid).std() > 20
    with Image.open(folder / "denoising.gif") as animation:
        assert animation.n_frames == 6 + 1  # the noise, and a state after each step
    with Image.open(folder / "reconstructions.png") as pairs:
        assert pairs.size == (2 * (20 * 30 + 2), 2 * (2 * 30 + 2))


def test_plots(project):
    done = run_in(project, "dvc", "plots", "show")
    assert done.returncode == 0, done.stderr
    page = (project / "dvc_plots/index.html").read_text()
    assert all(word in page for word in ("table.png", "distances.png", "grid.png", "denoising.gif", "reconstructions.png", "predicted", "validation_loss"))


def test_latents_moments_are_those_of_the_whole_train_split(project):
    latents = artifacts.load(project / "artifacts/encode_latents/latents.safetensors", "latents")
    mean, variance = latents["train_mean"].double(), latents["train_log_variance"].double().exp()
    second = (mean.square() + variance).mean((0, 2, 3))
    torch.testing.assert_close(latents["channel_mean"], mean.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(latents["channel_std"], (second - latents["channel_mean"] ** 2).sqrt(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stage", ["prepare_data", "train_classifier", "train_vae", "extract_features", "train_diffusion", "sample", "evaluate"])
def test_a_run_by_hand_gives_the_same_bytes(project, stage, tmp_path):
    """`python stages/<name>.py` with the same parameters reproduces every tracked file of the stage, and changes none."""
    tracked = {p: p.read_bytes() for p in (project / "artifacts").rglob("*.*")}
    done = run_in(project, sys.executable, f"stages/{stage}.py", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    outs = [Path(next(iter(o)) if isinstance(o, dict) else o) for o in read_yaml(project / "dvc.yaml")["stages"][stage]["outs"]]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(o.name for o in outs)
    for out in outs:
        assert (tmp_path / out.name).read_bytes() == (project / out).read_bytes(), out
    assert {p: p.read_bytes() for p in (project / "artifacts").rglob("*.*")} == tracked


def samples(path: Path) -> torch.Tensor:
    return artifacts.load(path / "samples.safetensors", "samples")["samples"]


@pytest.mark.parametrize("settings", [["first=17", "n=1"], ["batch_size=37"]])
def test_batch_size_and_index_never_change_a_sample(project, tmp_path, settings):
    arguments = [a for s in settings for a in ("--set", s)]
    done = run_in(project, sys.executable, "-m", "stages.sample", *arguments, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    wanted = samples(project / "artifacts/sample")
    torch.testing.assert_close(samples(tmp_path), wanted[17:18] if "n=1" in settings else wanted, rtol=1e-4, atol=1e-4)


def test_latents_of_another_vae_are_refused(project, tmp_path):
    done = run_in(project, sys.executable, "-m", "stages.train_vae", "--set", "seed=1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    done = run_in(project, sys.executable, "-m", "stages.decode", "--in", f"vae={tmp_path}/vae.safetensors", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "do not belong together" in done.stderr
    assert f"{tmp_path}/vae.safetensors" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


def test_a_failing_stage_fails_the_repro(copy):
    change(copy / "params.yaml", {"evaluate.n": 100})
    done = run_in(copy, "dvc", "repro")
    assert done.returncode == 255
    assert "evaluate: held_out: 100 samples cannot give the covariance of 128 features" in done.stderr


def test_divergence_keeps_the_last_good_weights(copy, tmp_path):
    settings = ["optimisation.lr=1.0", "optimisation.clip_norm=1e30", "optimisation.max_skipped=1", "optimisation.warmup=0"]
    arguments = [a for s in settings for a in ("--set", s)]
    script = "import torch, ldm.training as t; old = t.learning_rate; t.learning_rate = lambda s, i, peak: 1e30 if i > 12 else old(s, i, peak); "
    script += "import sys, stages.train_diffusion as m; sys.argv[0] = 'train_diffusion'; m.main()"
    done = run_in(copy, sys.executable, "-c", script, *arguments, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "had a non-finite loss or gradient; try a lower lr (now 1) or muon_lr (now 0.02) or a smaller clip_norm (now 1e+30)" in done.stderr
    assert "the last good weights are in scratch/train_diffusion/last_good.safetensors" in done.stderr
    assert (copy / "scratch/train_diffusion/last_good.safetensors").stat().st_size > 1000
    assert list((tmp_path / "out").iterdir()) == []


def test_readme_example_samples_digits(project, monkeypatch):
    """The five lines of the README, on this project's artifacts."""
    block = next(b for b in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL) if "import ldm" in b)
    assert len([line for line in block.splitlines() if line]) == 5
    monkeypatch.chdir(project)
    names: dict = {}
    exec(block, names)
    assert names["images"].dtype == torch.uint8
    stage = artifacts.load(Path("artifacts/decode/generated.safetensors"), "generated")["images"]
    difference = names["images"].int() - stage[: len(names["images"])].int()
    assert difference.abs().max() <= 2  # the digits that the stages made, up to rounding


def test_python_interface_takes_other_samplers(project):
    model = ldm.load(project / "artifacts")
    images = model.sample(3, seed=1, sampler={"ddim": {"eta": 0.5}}, steps=4)
    assert images.shape == (3, 1, 28, 28)
    alone = model.sample(1, seed=1, first=2, sampler={"ddim": {"eta": 0.5}}, steps=4)
    assert (alone[0].int() - images[2].int()).abs().max() <= 2
    assert not torch.equal(model.sample(3, seed=1), images)
    assert torch.equal(model.sample(2, seed=1, label=np.int64(3)), model.sample(2, seed=1, label=3))
    few = replace(model, sampling={**model.sampling, "batch_size": 2}).sample(5, seed=1)
    assert (few.int() - model.sample(5, seed=1).int()).abs().max() <= 2
    with pytest.raises(errors.InputError, match="0 images cannot be drawn"):
        model.sample(0)
    with pytest.raises(errors.InputError, match="known are ddim"):
        model.sample(1, sampler="nosuch")
    with pytest.raises(errors.InputError, match=r"spacings\.karras\.sigma_min: the parameter is missing"):
        model.sample(1, spacing="karras")


class TestData:
    """The three sources."""

    def prepare(self, monkeypatch, tmp_path, *arguments: str) -> artifacts.Artifact:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr("sys.argv", ["prepare_data", *arguments, "--out", str(tmp_path / "out")])
        prepare_data.main()
        return artifacts.load(tmp_path / "out/images.safetensors", "images")

    def test_without_data_or_connection_the_embedded_digits(self, monkeypatch, tmp_path, capsys):
        def offline(*_, **__):
            raise RuntimeError("no route")

        monkeypatch.setenv("LDM_DATA_ROOT", str(tmp_path / "root"))
        monkeypatch.setattr("torchvision.datasets.MNIST", offline)
        images = self.prepare(monkeypatch, tmp_path)
        assert [len(images[f"{s}_labels"]) for s in ("train", "validation", "test")] == [3500, 500, 1000]
        assert images.config["data"] == "mnist-5k"
        error = capsys.readouterr().err
        assert "NOT THE FULL MNIST" in error
        assert "'mnist-5k' in every metric" in error
        assert not list((tmp_path / "root").iterdir())
        every = torch.cat([images[f"{s}_images"] for s in ("train", "validation", "test")])
        assert torch.bincount(torch.cat([images[f"{s}_labels"] for s in ("train", "validation", "test")]).long()).tolist() == [500] * 10
        assert len(every.flatten(1).unique(dim=0)) >= 4990

    def test_a_download_fills_the_root(self, monkeypatch, tmp_path):
        def fake(folder, train=True, download=False):
            raw = Path(folder) / "MNIST/raw"
            if download:
                raw.mkdir(parents=True)
                for name in idx_files.MD5["MNIST"]:
                    (raw / name).write_bytes(name.encode())
                    (raw / f"{name}.gz").write_bytes(b"packed")

        monkeypatch.setattr("torchvision.datasets.MNIST", fake)
        assert idx_files.download("MNIST", tmp_path / "root")
        assert sorted(p.name for p in (tmp_path / "root/MNIST/raw").iterdir()) == sorted(idx_files.MD5["MNIST"])
        assert [p.name for p in (tmp_path / "root").iterdir()] == ["MNIST"]

    @pytest.mark.skipif(not os.environ.get("LDM_DATA_ROOT"), reason="LDM_DATA_ROOT names no MNIST")
    def test_the_full_set(self, monkeypatch, tmp_path):
        images = self.prepare(monkeypatch, tmp_path)
        assert [len(images[f"{s}_labels"]) for s in ("train", "validation", "test")] == [55_000, 5_000, 10_000]
        assert images.config == {"classes": 10, "data": "mnist", "limit": 0, "seed": 0}
        counts = torch.bincount(torch.cat([images[f"{s}_labels"] for s in ("train", "validation")]).long())
        assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert images["test_labels"][:5].tolist() == [7, 2, 1, 0, 4]
        other = self.prepare(monkeypatch, tmp_path, "--set", "seed=1")
        assert not torch.equal(other["validation_labels"], images["validation_labels"])
        assert other.sha256 != images.sha256


def test_repeating_the_sampling_over_seeds(project, tmp_path):
    done = run_in(project, sys.executable, "-m", "stages.repeat", "--from", "sample", "--seeds", "1,2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [json.loads((tmp_path / f"sample-{seed}" / "diffusion.json").read_text()) for seed in (1, 2)]
    assert rows[0]["fid"] != rows[1]["fid"]
    found = json.loads((tmp_path / "summary.json").read_text())
    assert (found["seeds"], found["n"]) == ([1, 2], 300)
    assert found["fid"]["mean"] == pytest.approx((rows[0]["fid"] + rows[1]["fid"]) / 2)
    assert found["fid"]["std"] == pytest.approx(abs(rows[0]["fid"] - rows[1]["fid"]) / np.sqrt(2))
    assert f"{found['fid']['mean']:.4g} ±" in done.stdout


def test_a_seed_is_repeated_where_anything_has_changed(copy, tmp_path):
    """An old row is not taken for that of other parameters; one that was not finished is run again."""
    command = [sys.executable, "-m", "stages.repeat", "--from", "sample", "--seeds", "1,2", "--out", str(tmp_path)]
    first = run_in(copy, *command)
    assert first.returncode == 0, first.stderr
    rows = [tmp_path / f"sample-{seed}" / "diffusion.json" for seed in (1, 2)]
    made = [row.stat().st_mtime_ns for row in rows]
    (tmp_path / "sample-2/key.txt").unlink()
    again = run_in(copy, *command)
    assert again.stdout == first.stdout
    assert [row.stat().st_mtime_ns == before for row, before in zip(rows, made, strict=True)] == [True, False]
    change(copy / "params.yaml", {"sample.steps": 3})
    other = run_in(copy, *command)
    assert other.returncode == 0, other.stderr
    assert other.stdout != first.stdout


def test_images_of_one_class_are_not_scored(project, tmp_path):
    def stage(name: str, *arguments: str):
        return run_in(project, sys.executable, "-m", f"stages.{name}", *arguments, "--out", str(tmp_path))

    assert stage("sample", "--set", "label=7", "--set", "n=300").returncode == 0
    assert stage("decode", "--in", f"samples={tmp_path / 'samples.safetensors'}").returncode == 0
    done = stage("evaluate", "--in", f"generated={tmp_path / 'generated.safetensors'}")
    assert done.returncode == 2
    assert done.stderr == "evaluate: the generated images are all of class 7, but they are compared with all classes; set sample.label to null\n"
    assert not (tmp_path / "diffusion.json").exists()


def test_the_second_classifier_is_another_one(project, tmp_path):
    first, second = (artifacts.load(project / f"artifacts/train_{kind}/{kind}.safetensors", kind) for kind in ("classifier", "second_classifier"))
    assert first.config["classifier"] != second.config["classifier"]
    assert first.config["seed"] != second.config["seed"]
    features = artifacts.load(project / "artifacts/extract_features/features.safetensors", "features")
    images = artifacts.load(project / "artifacts/prepare_data/images.safetensors", "images")
    for artifact, suffix in ((first, ""), (second, "_second")):
        found = in_batches(Classifier.from_artifact(artifact).features, images["test_images"][:50])
        torch.testing.assert_close(features[f"test{suffix}"][:50], found, rtol=1e-4, atol=1e-4)
    row = json.loads((project / "artifacts/metrics/random.json").read_text())
    assert row["fid_second"] != row["fid"]
    train = run_in(project, sys.executable, "-m", "stages.train_second_classifier", "--set", "classifier=conv", "--out", str(tmp_path))
    assert train.returncode == 0, train.stderr
    path = tmp_path / "second_classifier.safetensors"
    done = run_in(project, sys.executable, "-m", "stages.extract_features", "--in", f"second_classifier={path}", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "are both 'conv'; the second one must be of another shape" in done.stderr


def test_a_guide_of_another_training_is_refused(project, tmp_path):
    train = run_in(project, sys.executable, "-m", "stages.train_diffusion", "--set", "seed=1", "--out", str(tmp_path))
    assert train.returncode == 0, train.stderr
    done = run_in(project, sys.executable, "-m", "stages.sample", "--in", f"guide={tmp_path / 'guide.safetensors'}", "--out", str(tmp_path / "s"))
    assert done.returncode == 2
    assert re.fullmatch(r"sample: .*denoiser\.safetensors and .*guide\.safetensors do not belong together: .*\n", done.stderr), done.stderr


def test_mirrored_latents_are_refused(project, tmp_path):
    done = run_in(project, sys.executable, "-m", "stages.train_diffusion", "--set", "flip=0.5", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "flip 0.5 mirrors images, not the latents of an autoencoder" in done.stderr


class TestSweep:
    """One point of quality against effort."""

    def point(self, project, out, *settings):
        arguments = [a for s in ("n=30", "resamples=2", *settings) for a in ("--set", s)]
        inputs = {Path(d).stem: d for d in read_yaml(ROOT / "recipes/sweep/dvc.yaml")["stages"]["sweep"]["deps"] if not d.endswith(".py")}
        assert all((project / "recipes/sweep" / path).resolve().is_file() for path in inputs.values())
        return run_in(project / "recipes/sweep", sys.executable, "-m", "stages.sweep", *arguments, "--out", str(out), PYTHONPATH=str(project))

    @pytest.mark.parametrize(("sampler", "evaluations", "steps"), [("dpmpp_2m", 12, 7), ("heun", 16, 6), ("ddpm", 40, 25)])
    def test_passes_are_counted(self, project, tmp_path, sampler, evaluations, steps):
        """No more than asked for, and one more step would be too many; the guide's passes count."""
        done = self.point(project, tmp_path, f"sampler={sampler}", f"evaluations={evaluations}", "n=200")
        assert done.returncode == 0, done.stderr
        row = json.loads((tmp_path / "point.json").read_text())
        assert (row["sampler"], row["steps"]) == (sampler, steps)
        assert evaluations - 3 <= row["evaluations"] <= evaluations
        assert row["fid_over_floor"] > 1
        assert row["seconds_per_10k"] > 0

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            (["n=5000"], "n 5000 is more than the 300 validation images"),
            (["n=128"], "validation images: 128 samples cannot give the covariance"),
            (
                ["n=200", "evaluations=1", "spacing=karras", "spacings.karras.sigma_max=3.0"],
                "evaluations 1 are not enough for one step",
            ),
        ],
    )
    def test_bad_points(self, project, tmp_path, settings, words):
        done = self.point(project, tmp_path, *settings)
        assert done.returncode == 2
        assert words in done.stderr.splitlines()[-1]
        assert not (tmp_path / "point.json").exists()

    def test_the_report(self, project, tmp_path):
        points = tmp_path / "points"
        for i, name in enumerate("ab"):
            (points / name).mkdir(parents=True)
            row = {"sampler": name, "steps": 3, "evaluations": 5, "fid_over_floor": 2.5 + i, "spread": 0.1, "seconds_per_10k": 30.0}
            (points / name / "point.json").write_text(json.dumps(row))
        command = ("-m", "stages.sweep_report", "--in", f"points={points}", "--out", str(tmp_path / "out"))
        done = run_in(project / "recipes/sweep", sys.executable, *command, PYTHONPATH=str(project))
        assert done.returncode == 0, done.stderr
        table = (tmp_path / "out/table.md").read_text().splitlines()
        assert table[2:] == ["| a | 3 | 5 | 2.50 ± 0.10 | 30 |", "| b | 3 | 5 | 3.50 ± 0.10 | 30 |"]
        with Image.open(tmp_path / "out/sweep.png") as picture:
            assert np.asarray(picture).std() > 10
        (points / "a/point.json").write_text("{}")
        assert "a/point.json is not a point of the sweep" in run_in(project / "recipes/sweep", sys.executable, *command, PYTHONPATH=str(project)).stderr
        shutil.rmtree(points / "a")
        shutil.rmtree(points / "b")
        assert "holds no points" in run_in(project / "recipes/sweep", sys.executable, *command, PYTHONPATH=str(project)).stderr


def test_the_report(project):
    table = (project / "artifacts/report/table.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in table] == ["images", "---", *ROWS]
    found = json.loads((project / "artifacts/report/memorisation.json").read_text())
    assert 0 <= found["near_in_pixels"] <= 1
    with Image.open(project / "artifacts/report/closest_pairs.png") as pairs:
        assert pairs.size == (2 * (12 * 30 + 2), 2 * (4 * 30 + 2))
