"""Classes: the network is given them in training, samples draw theirs, and one can be asked for."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, run_in
from torch import nn

import ldm
from ldm import artifacts, choices
from ldm.denoiser import Denoiser, Guided
from ldm.errors import InputError
from ldm.latents import Standardiser, draw
from ldm.loss import diffusion_loss
from ldm.sampling import Streams
from stages.cli import read_yaml
from stages.train_diffusion import Config, classes

UNET = {"patch": 1, "width": 16, "multipliers": [1], "block": "resnet", "blocks": 1, "attention": "none", "resampling": "learned"}
UNET |= {"embedding": 32, "groups": 8, "heads": 2, "dropout": 0.0}
CONFIG = {"network": "unet", "networks": {"unet": UNET}, "schedule": "flow", "schedules": {"flow": {}}, "target": "flow", "targets": {"flow": {}}}


def denoiser(*class_sizes: int) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser.from_config(CONFIG, (1, 4, 4), class_sizes)


def guided(*class_sizes: int) -> Guided:
    return Guided(denoiser(*class_sizes), denoiser(*class_sizes), weight=2.0, sigma_min=0.0, sigma_max=10.0)


def test_a_denoiser_learns_what_a_class_looks_like():
    """White images and black ones, almost pure noise: only the class tells which."""
    learner = denoiser(1, 1)
    penalty, weighting = choices.build("losses", "l2", {}), choices.build("weightings", "uniform", {})
    adam = torch.optim.Adam(learner.network.parameters(), 0.01)
    shades = torch.tensor([1.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        labels = torch.randint(2, (32,), generator=generator)
        x0 = shades[labels, None, None, None].expand(-1, 1, 4, 4)
        eps, t = torch.randn(x0.shape, generator=generator), torch.rand(32, generator=generator).clamp(min=0.5)
        loss = diffusion_loss(learner.given(labels), penalty, weighting, x0, eps, t).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    noise = torch.randn(1, 1, 4, 4, generator=generator)
    with torch.no_grad():
        white, black = (learner.given(torch.tensor([c])).x0(noise, torch.tensor([0.99])).mean().item() for c in (0, 1))
    assert white > 0.8
    assert black < -0.8
    assert learner.labels is None  # `given` leaves the denoiser as it was


def test_every_class_has_a_gradient_of_its_own():
    network = denoiser(1, 1, 1).network
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    network(torch.randn(4, 1, 4, 4), torch.rand(4), torch.tensor([0, 2, 2, 0])).square().sum().backward()
    (table,) = (p for name, p in network.named_parameters() if "classes" in name)
    assert (table.grad.abs().sum(1) > 0).tolist() == [True, False, True]


def test_classes_add_one_table_of_weights():
    plain, classed = denoiser().network, denoiser(1, 1, 1).network
    assert classed.state_dict().keys() - plain.state_dict().keys() == {"embed.classes.weight"}
    assert not plain.state_dict().keys() - classed.state_dict().keys()


@pytest.mark.parametrize("network", ["mlp", "conv_unet"])
def test_other_networks_refuse_classes(network):
    section = read_yaml(ROOT / "recipes/blog_ldm/params.yaml")["tutorial"] | {"network": network}
    section["networks"] |= {"mlp": {"width": 8, "layers": 1, "embedding": 4, "experts": 1}}
    Config.parse(section, "train_diffusion")
    with pytest.raises(InputError, match=f"network '{network}' takes no classes; choose unet, or set class_labels to false"):
        Config.parse(section | {"class_labels": True}, "train_diffusion")


def test_classes_are_drawn_as_often_as_in_training():
    sizes = [100, 0, 300, 600]
    drawn = Streams(5, range(4000), (1,)).classes(sizes)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert shares[1] == 0
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.0, 0.3, 0.6]), rtol=0, atol=0.03)  # four deviations of a share of 0.6
    assert torch.equal(Streams(5, [17, 3], (1,)).classes(sizes), drawn[[17, 3]])  # the batch never changes a sample's class
    assert not torch.equal(Streams(6, range(4000), (1,)).classes(sizes), drawn)


def test_the_noise_is_the_same_whatever_class_is_asked_for():
    noise = []
    for label in (None, 0, 2):
        streams = Streams(0, range(3), (2,))
        given = guided(5, 5, 5).given_streams(streams, label)
        assert label is None or given.main.labels.tolist() == [label] * 3
        assert given.guide.labels is given.main.labels
        noise.append(streams())
    assert torch.equal(noise[0], noise[1])
    assert torch.equal(noise[0], noise[2])


@pytest.mark.parametrize("label", [-1, 1, 3, 1.0, "2"])
def test_classes_that_were_not_trained_on_are_refused(label):
    with pytest.raises(InputError, match=f"label {label!r}: the denoiser was not trained on this class, but on 0, 2"):
        guided(5, 0, 5).given_streams(Streams(0, [0], (1, 4, 4)), label)


def test_without_labels_there_is_no_class_to_ask_for():
    streams, plain = Streams(0, [0], (1, 4, 4)), guided()
    assert plain.given_streams(streams, None) is plain
    with pytest.raises(InputError, match="label 0: the denoiser was trained without labels; train it with class_labels"):
        plain.given_streams(streams, 0)


@pytest.mark.parametrize("sizes", [["5", "5"], "55", {"0": 5}, [0, 0], [5, -1], [True, True], [None, 2], [2**70, 1], 7])
def test_forged_sizes_of_classes_are_refused(sizes, tmp_path):
    config = CONFIG | {"shape": [1, 4, 4], "class_sizes": sizes}
    artifacts.save(tmp_path / "denoiser.safetensors", "denoiser", denoiser(1, 1).network.state_dict(), config)
    with pytest.raises(InputError, match="class_sizes of its configuration are not the numbers of training images"):
        Denoiser.from_artifact(artifacts.load(tmp_path / "denoiser.safetensors", "denoiser"))


def test_an_optional_tensor_may_be_missing_but_not_wrong(tmp_path):
    path = tmp_path / "samples.safetensors"
    tensors = {"samples": torch.zeros(2, 1, 4, 4), "trajectory": torch.zeros(1, 3, 1, 4, 4)}
    for labels in ({}, {"labels": torch.zeros(2, dtype=torch.uint8)}):
        artifacts.save(path, "samples", tensors | labels, {})
        assert artifacts.load(path, "samples").tensors.keys() == (tensors | labels).keys()
    artifacts.save(path, "samples", tensors | {"labels": torch.zeros(2)}, {})
    with pytest.raises(InputError, match=r"tensor 'labels' is torch\.float32 \(2,\), but torch\.uint8"):
        artifacts.load(path, "samples")
    artifacts.save(path, "samples", tensors | {"classes": torch.zeros(2)}, {})
    with pytest.raises(InputError, match="tensor 'classes' is unknown"):
        artifacts.load(path, "samples")


def sample(project, out, *settings, **sources):
    arguments = [a for s in settings for a in ("--set", s)] + [a for kind, path in sources.items() for a in ("--in", f"{kind}={path}")]
    return run_in(project, sys.executable, "-m", "stages.sample", *arguments, "--out", str(out))


@pytest.mark.slow
def test_samples_tell_their_class(project, tmp_path):
    """Those of the pipeline: drawn in the training images' shares; a class asked for is the only one."""
    images = artifacts.load(project / "artifacts/prepare_data/images.safetensors", "images")
    trained = artifacts.load(project / "artifacts/train_diffusion/denoiser.safetensors", "denoiser")
    assert trained.config["class_sizes"] == torch.bincount(images["train_labels"].long(), minlength=10).tolist()
    drawn = artifacts.load(project / "artifacts/sample/samples.safetensors", "samples")
    assert torch.equal(drawn["labels"], Streams(0, range(300), (1,)).classes(trained.config["class_sizes"]).byte())
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
    assert done.stderr.splitlines()[-1] == "sample: label 10: the denoiser was not trained on this class, but on 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_training_without_classes(project, tmp_path):
    """As before there were any: no sizes, no labels, and no class to ask for."""
    settings = ["--set", "class_labels=false", "--in", "images=nosuch.safetensors"]  # it does not read the images
    done = run_in(project, sys.executable, "-m", "stages.train_diffusion", *settings, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    trained = artifacts.load(tmp_path / "denoiser.safetensors", "denoiser")
    assert "class_sizes" not in trained.config
    assert "embed.classes.weight" not in trained.tensors
    sources = {kind: tmp_path / f"{kind}.safetensors" for kind in ("denoiser", "guide")}
    done = sample(project, tmp_path, "n=4", **sources)
    assert done.returncode == 0, done.stderr
    assert artifacts.load(tmp_path / "samples.safetensors", "samples").tensors.keys() == {"samples", "trajectory"}
    done = sample(project, tmp_path / "one", "label=1", **sources)
    assert done.returncode == 2
    assert "label 1: the denoiser was trained without labels" in done.stderr


@pytest.mark.slow
def test_validation_is_with_the_right_classes(project):
    """The last point of the curve, by its definition; with wrong classes the same network does worse, after 40 steps already."""
    folder = project / "artifacts"
    trained = Denoiser.from_artifact(artifacts.load(folder / "train_diffusion/denoiser.safetensors", "denoiser"))
    latents = artifacts.load(folder / "encode_latents/latents.safetensors", "latents")
    labels = artifacts.load(folder / "prepare_data/images.safetensors", "images")["validation_labels"].long()
    section = read_yaml(project / "params.yaml")["train_diffusion"]
    penalty, weighting = choices.build("losses", "l2", {}), choices.build("weightings", "uniform", {})
    times = choices.build("times", section["time"], section["times"][section["time"]])
    mean, log_variance = latents["validation_mean"], latents["validation_log_variance"]

    def loss(labels: torch.Tensor) -> float:
        generator = torch.Generator().manual_seed(0)
        eps = torch.randn(2, *mean.shape, generator=generator)
        t = times(trained.schedule, len(mean), generator)
        x0 = Standardiser.from_artifact(latents).standardise(draw(mean, log_variance, eps[0]))
        with torch.inference_mode():
            return diffusion_loss(trained.given(labels), penalty, weighting, x0, eps[1], t).mean().item()

    assert len(mean) <= 500  # one part
    curve = json.loads((folder / "train_diffusion/history.json").read_text())
    assert loss(labels) == pytest.approx(curve[-1]["validation_loss"], rel=1e-5)
    assert loss((labels + 5) % 10) > loss(labels)


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        ([0, 1, 3], [0, 2], "class 2 has validation images, but none for training"),
        ([0, 1], [0, 1], "do not belong together: they are of different numbers of images"),
    ],
)
def test_labels_that_do_not_fit_the_latents(train, validation, words):
    labels = {f"{split}_labels": torch.tensor(of, dtype=torch.uint8) for split, of in (("train", train), ("validation", validation))}
    images = artifacts.Artifact(Path("images.safetensors"), "images", labels, {}, {}, "a")
    latents = artifacts.Artifact(
        Path("latents.safetensors"), "latents", {"train_mean": torch.zeros(3, 1), "validation_mean": torch.zeros(2, 1)}, {}, {"images": "a"}, "b"
    )
    job: Any = SimpleNamespace(inputs={"images": images.path}, load=lambda kind: images, device="cpu")
    with pytest.raises(InputError, match=words):
        classes(job, latents)


@pytest.mark.slow
def test_labels_need_the_images(project, tmp_path):
    """A dvc.yaml of before, that gives the training no images."""
    text = (project / "dvc.yaml").read_text()
    before, start, stage = text.partition("  train_diffusion:\n")
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "dvc.yaml").write_text(before + start + re.sub(r" +- artifacts/prepare_data/images.safetensors\n", "", stage, count=1))
    (folder / "params.yaml").write_text((project / "params.yaml").read_text())
    (folder / "artifacts").symlink_to(project / "artifacts")
    done = run_in(folder, sys.executable, "-m", "stages.train_diffusion", "--out", str(tmp_path / "out"), PYTHONPATH=str(project))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("train_diffusion: class_labels needs the labels of the images; add the artifact of prepare_data")
