"""What lies between the latents of an autoencoder, as the tool measures it."""

import json
import sys

import pytest
import torch
from conftest import run_in

from ldm import artifacts, networks
from ldm.artifacts import STAGES
from ldm.metrics import frechet
from tools.compare_latents import midpoints

NEEDED = [(kind, STAGES[kind]) for kind in ("images", "features", "classifier", "vae")]
TOOL = (sys.executable, "-m", "tools.compare_latents")


def test_each_latent_is_averaged_with_its_nearest_neighbour():
    """By the standardised distance: the second channel is a thousand times as wide as the first."""
    points = torch.tensor([[0.0, 0.0], [0.1, 1000.0], [10.0, 1500.0], [10.1, 600.0]])[:, :, None, None]
    found = midpoints(networks.Posterior.exact(points))
    assert torch.equal(found, (points + points[[1, 0, 3, 2]]) / 2)  # by the raw distance [3, 3, 1, 1]


@pytest.mark.slow
def test_autoencoders_are_compared(project, tmp_path):
    found = {kind: artifacts.load(project / f"artifacts/{stage}/{kind}.safetensors", kind) for kind, stage in NEEDED}
    vae = found["vae"].path
    done = run_in(project, *TOOL, f"small={vae}", "--out", str(tmp_path / "latents.json"))
    assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "latents.json").read_text())["small"]
    network = networks.autoencoder.from_artifact(found["vae"])
    posterior = networks.autoencoder.encode_images(network, found["images"]["validation_images"])
    classifier = networks.classifier.Classifier.from_artifact(found["classifier"])
    train, validation = (frechet.moments(found["features"][split].numpy()) for split in ("train", "validation"))
    for name, z in (("reconstructions", posterior.mean), ("midpoints", midpoints(posterior))):
        drawn = networks.classifier.in_batches(classifier.features, networks.autoencoder.decode_images(network, z))
        ratio = frechet.frechet_distance(frechet.moments(drawn.numpy()), train)
        assert values[name] == pytest.approx(ratio / frechet.frechet_distance(validation, train), rel=1e-3)
    kl = posterior.kl_divergence().double().sum().item() / len(posterior.mean)
    assert values["kl"] == pytest.approx(kl, rel=1e-5)
    assert values["config"]["kl_weight"] == 0.02
    for argument, words in (("a=nosuch.safetensors", "nosuch.safetensors is missing"), ("x", "x: write NAME=PATH for")):
        done = run_in(project, *TOOL, argument, "--out", str(tmp_path / "other.json"))
        assert done.returncode == 2
        assert done.stderr.startswith(f"compare_latents: {words}")
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "other.json").exists()
