"""Class labels through the stages: which networks take them, how they are trained with, and how they are asked for."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, run_stage

import ldm
from ldm import artifacts
from ldm.diffusion import Denoiser, DiffusionLoss, penalties, timestep_samplings, weightings
from ldm.errors import InputError
from ldm.networks import Posterior, Standardiser
from ldm.sampling.classes import classes_of
from stages.runner import read_section
from stages.train_diffusion import Config, read_labels


@pytest.mark.parametrize("network", ["mlp", "conv_unet"])
def test_other_networks_refuse_classes(network):
    section = read_section(ROOT / "recipes/blog_ldm/params.yaml", "tutorial") | {"network": network}
    Config.parse(section, "train_diffusion")
    words = f"network '{network}' takes no classes; choose unet, or set class_labels to false"
    with pytest.raises(InputError, match=words):
        Config.parse(section | {"class_labels": True}, "train_diffusion")
    Config.parse(section | {"class_labels": True, "network": "unet"}, "train_diffusion")


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        ([0, 1, 3], [0, 2], "class 2 has validation images, but none for training"),
        ([0, 1], [0, 1], "images.safetensors and latents.safetensors do not belong together: .*numbers of images"),
    ],
)
def test_labels_that_do_not_fit_the_latents(train, validation, words):
    splits = {"train": train, "validation": validation}
    labels = {f"{split}_labels": torch.tensor(of, dtype=torch.uint8) for split, of in splits.items()}
    means = {"train_mean": torch.zeros(3, 1), "validation_mean": torch.zeros(2, 1)}
    images = artifacts.Artifact(Path("images.safetensors"), "images", labels, {"class_names": list("0123")}, {}, "a")
    latents = artifacts.Artifact(Path("latents.safetensors"), "latents", means, {}, {"images": "a"}, "b")
    run: Any = SimpleNamespace(inputs={"images": images.path}, load=lambda kind: images, device="cpu")
    with pytest.raises(InputError, match=words):
        read_labels(run, latents)


def test_labels_and_how_many_images_each_class_has():
    labels = {"train_labels": torch.tensor([0, 3, 3]), "validation_labels": torch.tensor([3, 0])}
    means = {"train_mean": torch.zeros(3, 1), "validation_mean": torch.zeros(2, 1)}
    images = artifacts.Artifact(Path("images.safetensors"), "images", labels, {"class_names": list("0123")}, {}, "a")
    latents = artifacts.Artifact(Path("latents.safetensors"), "latents", means, {}, {"images": "a"}, "b")
    run: Any = SimpleNamespace(inputs={"images": images.path}, load=lambda kind: images, device="cpu")
    read, classes = read_labels(run, latents)
    assert {split: of.tolist() for split, of in read.items()} == {"train": [0, 3, 3], "validation": [3, 0]}
    assert classes == {"class_sizes": [1, 0, 0, 2], "class_names": ["0", "1", "2", "3"]}


def sample(project, out, *settings, **sources):
    arguments = [word for setting in settings for word in ("--set", setting)]
    arguments += [word for kind, path in sources.items() for word in ("--in", f"{kind}={path}")]
    return run_stage(project, "sample", *arguments, "--out", str(out))


@pytest.mark.slow
def test_samples_tell_their_class(project, tmp_path):
    """Those of the pipeline: in the training images' shares, by quota; a class asked for is the only one."""
    images = artifacts.load(project / "artifacts/prepare_data/images.safetensors", "images")
    trained = artifacts.load(project / "artifacts/train_diffusion/denoiser.safetensors", "denoiser")
    sizes = trained.config["class_sizes"]
    assert sizes == torch.bincount(images["train_labels"].long(), minlength=10).tolist()
    drawn = artifacts.load(project / "artifacts/sample/samples.safetensors", "samples")
    assert torch.equal(drawn["labels"], classes_of(range(300), sizes, None, "cpu").byte())
    done = sample(project, tmp_path, "label=3", "n=20")
    assert done.returncode == 0, done.stderr
    threes = artifacts.load(tmp_path / "samples.safetensors", "samples")
    assert threes["labels"].tolist() == [3] * 20
    same = drawn["labels"][:20] == 3
    assert 0 < same.sum() < 20
    close = (threes["samples"] - drawn["samples"][:20]).abs().amax((1, 2, 3)) < 1e-3
    assert torch.equal(close, same)  # the noise is that of the index, so only those of another class differ
    model = ldm.load(project / "artifacts")
    assert not torch.equal(model.sample(5, label=1), model.sample(5, label=8))
    with pytest.raises(InputError, match="label 10: the denoiser was not trained on this class, but on 0, 1, 2"):
        model.sample(1, label=10)


@pytest.mark.slow
def test_an_unknown_class_leaves_nothing_behind(project, tmp_path):
    done = sample(project, tmp_path, "label=10")
    assert done.returncode == 2
    words = "sample: label 10: the denoiser was not trained on this class, but on 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert done.stderr.splitlines()[-1] == words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_training_without_classes(project, tmp_path):
    """No sizes, no labels, and no class to ask for; the stage does not even read the images."""
    (tmp_path / "empty").touch()
    settings = ["--set", "class_labels=false", "--in", f"images={tmp_path / 'empty'}"]
    done = run_stage(project, "train_diffusion", *settings, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    trained = artifacts.load(tmp_path / "denoiser.safetensors", "denoiser")
    assert "class_sizes" not in trained.config
    assert "embed.classes.weight" not in trained.tensors
    sources = {kind: tmp_path / f"{kind}.safetensors" for kind in ("denoiser", "guide")}
    done = sample(project, tmp_path, "n=4", **sources)
    assert done.returncode == 0, done.stderr
    drawn = artifacts.load(tmp_path / "samples.safetensors", "samples")
    assert drawn.tensors.keys() == {"samples", "trajectory"}
    done = sample(project, tmp_path / "one", "label=1", **sources)
    assert done.returncode == 2
    assert "label 1: the denoiser was trained without labels" in done.stderr


@pytest.mark.slow
def test_validation_is_with_the_right_classes(project):
    """The last point of the curve, by its definition; with wrong classes the same network does worse already."""
    folder = project / "artifacts"
    trained = Denoiser.from_artifact(artifacts.load(folder / "train_diffusion/denoiser.safetensors", "denoiser"))
    latents = artifacts.load(folder / "encode_latents/latents.safetensors", "latents")
    images = artifacts.load(folder / "prepare_data/images.safetensors", "images")
    labels = images["validation_labels"].long()
    section = read_section(project / "params.yaml", "train_diffusion")
    name = section["timestep_sampling"]
    draw_times = timestep_samplings.build(name, section.get("timestep_samplings", {}).get(name))
    of_squares = DiffusionLoss(penalties.build("l2"), weightings.build("none"))
    posterior = Posterior(latents["validation_mean"], latents["validation_log_variance"])

    def loss(labels: torch.Tensor) -> float:
        generator = torch.Generator().manual_seed(0)
        eps = torch.randn(2, *posterior.mean.shape, generator=generator)
        t = draw_times(trained.schedule, len(labels), generator)
        x0 = Standardiser.from_artifact(latents).standardise(posterior.draw(eps[0]))
        with torch.inference_mode():
            return of_squares(trained, x0, eps[1], t, labels).mean().item()

    assert len(labels) <= 500  # validated at once
    curve = json.loads((folder / "train_diffusion/history.json").read_text())
    assert loss(labels) == pytest.approx(curve[-1]["validation_loss"], rel=1e-5)
    assert loss((labels + 5) % 10) > loss(labels)


@pytest.mark.slow
def test_labels_need_the_images(project, tmp_path):
    """With a dvc.yaml that gives the training no images."""
    before, start, stage = (project / "dvc.yaml").read_text().partition("  train_diffusion:\n")
    image_free, removed = re.subn(r" +artifacts/prepare_data/images.safetensors,\n", "", stage, count=1)
    assert removed == 1
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    (recipe / "dvc.yaml").write_text(before + start + image_free)
    (recipe / "params.yaml").write_text((project / "params.yaml").read_text())
    (recipe / "artifacts").symlink_to(project / "artifacts")
    done = run_stage(project, "train_diffusion", "--recipe", str(recipe), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert re.match("train_diffusion: class_labels needs .*images.* prepare_data", done.stderr.splitlines()[-1])
