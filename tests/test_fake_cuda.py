"""Losses, samplers and networks on a GPU that is not there.

A fake tensor knows its device and shape, but has no values. So a tensor on the wrong device is an error, and so is a
look at a value, for which the CPU would wait. Only forward passes run like this: a backward pass, and a generator of
random numbers on the GPU, need its driver.
"""

from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.nn.functional import cross_entropy

from ldm.diffusion import Denoiser, DiffusionLoss, Objective, timestep_samplings
from ldm.networks import Posterior, Standardiser, autoencoder, autoencoders, classifiers, networks, scaling
from ldm.networks.classifier import Classifier, augment
from ldm.sampling import Guided, Streams, samplers, spacings, states
from ldm.sampling.classes import class_seen, classes_of
from stages.runner import PARAMS, read_section
from stages.train_diffusion import Config

SHAPE, CLASSES, B = (2, 7, 7), 10, 4
CONFIG = Config.parse(read_section(ROOT / PARAMS, "train_diffusion"), "train_diffusion")


# the options by which the deterministic samplers draw fresh noise; the pipeline's is the first
NOISY = [("dpmpp_2m", {"eta": 0.5}), ("ddim", {"eta": 1.0}), ("heun", {"S_churn": 10.0})]


def fake() -> FakeTensorMode:
    """In it, a tensor on cuda is one on a GPU that is not there."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def moved(network: nn.Module) -> nn.Module:
    """The network with its weights and buffers on that GPU, in the same memory layout."""
    for module in network.modules():
        for name, x in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_strided(x.shape, x.stride(), device="cuda")))
        for name, x in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda"))
    return network


def denoiser(schedule: str = "rectified_flow", **changes) -> Denoiser:
    config = CONFIG.resolved() | {"schedule": schedule, "schedules": {schedule: {}}} | changes
    return Denoiser.from_config(config, SHAPE, [B] * CLASSES)


def batch() -> tuple[Tensor, Tensor]:
    return torch.empty(B, *SHAPE, device="cuda"), torch.zeros(B, dtype=torch.long, device="cuda")


@pytest.fixture
def generator(monkeypatch) -> SimpleNamespace:
    """A stand-in for the generator of that GPU: what is drawn from it has a shape, as all that is fake."""
    for draw in (torch.rand, torch.randn):

        def without(*size, draw=draw, generator=None, **options) -> Tensor:
            return draw(*size, **options)

        monkeypatch.setattr(torch, draw.__name__, without)
    return SimpleNamespace(device=torch.device("cuda"))


def test_the_check_notices_a_wrong_device_and_a_look_at_a_value():
    with fake():
        x, _ = batch()
        with pytest.raises(RuntimeError, match="device"):
            x + torch.empty(B, *SHAPE)
        with pytest.raises(DataDependentOutputException):
            x.sum().item()


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("schedule", ["rectified_flow", "cosine", "vp"])
@pytest.mark.parametrize("timestep_sampling", sorted(timestep_samplings.functions))
def test_a_training_loss(schedule, norm, timestep_sampling, generator):
    model = denoiser(schedule, networks={"unet": CONFIG.networks["unet"] | {"norm": norm, "groups": 8}})
    loss = DiffusionLoss(CONFIG.build("penalty"), CONFIG.build("weighting"))
    with fake():
        moved(model.network).train()
        mean, labels = batch()
        standardiser = Standardiser(*(torch.ones(2, dtype=torch.float64, device="cuda") for _ in range(2)))
        objective = Objective(standardiser, loss, timestep_samplings.build(timestep_sampling))
        value = objective(model, Posterior(mean, mean), labels, generator)
        assert (value.device.type, value.shape, value.requires_grad) == ("cuda", (B,), True)


@pytest.mark.parametrize(
    ("name", "options", "schedule"),
    [(name, {}, schedule) for name in sorted(samplers.functions) for schedule in ("rectified_flow", "cosine")]
    + [(name, options, "vp") for name, options in NOISY],
)
def test_every_sampler(name, options, schedule):
    main, guide = denoiser(schedule), denoiser(schedule)
    guided = Guided(main, guide, weight=1.5, sigma_min=0.3, sigma_max=4.0)
    sigmas = spacings.build("trailing")(main.schedule, 3)
    with fake(), torch.inference_mode():
        for network in (main.network, guide.network):
            moved(network).eval()
        noise = Streams(0, range(B), SHAPE, "cuda")
        labels = classes_of(range(B), [B] * CLASSES, None, "cuda")
    with torch.inference_mode():  # the levels are real numbers on the CPU; whatever meets a fake tensor becomes one
        *_, end = states(guided, samplers.build(name, options), sigmas, noise, labels)
        seen = class_seen(main, end, noise)
    assert (end.device.type, end.dtype, end.shape) == ("cuda", torch.float64, (B, *SHAPE))
    assert (seen.device.type, seen.dtype, seen.shape) == ("cuda", torch.int64, (B,))


@pytest.mark.parametrize("name", sorted(classifiers.functions))
def test_a_classifiers_loss(name, generator):
    network = Classifier(classifiers.build(name)((1, 28, 28)), CLASSES)
    with fake():
        x, labels = torch.zeros(B, 1, 28, 28, device="cuda"), torch.zeros(B, dtype=torch.long, device="cuda")
        logits = moved(network).train()(augment(x, generator, shift=2.0, rotation=10.0, scale=0.1))
        assert (logits.device.type, logits.shape) == ("cuda", (B, CLASSES))
        assert cross_entropy(logits, labels).requires_grad


def test_the_autoencoder():
    vae = autoencoders.build("conv_vae")((1, 28, 28))
    with fake():
        images = torch.zeros(B, 1, 28, 28, dtype=torch.uint8, device="cuda")
        posterior = autoencoder.encode_images(moved(vae), images)
        assert autoencoder.decode_images(vae, posterior.mean).device.type == "cuda"
        x, eps = images / 255, torch.empty(posterior.mean.shape, device="cuda")
        assert autoencoder.vae_loss(vae, x, eps, 1.0).device.type == "cuda"
        sizes = scaling.heights(range(B), 0.5, 7, "cuda")
        assert scaling.scaled_vae_loss(vae, x, eps, sizes, 1.0).device.type == "cuda"


@pytest.mark.parametrize("name", sorted(networks.functions))
def test_every_network(name):
    shape = (2, 1, 1) if name == "mlp" else (2, 8, 8)
    network = networks.build(name)(shape)
    with fake():
        moved(network)
        assert network(torch.empty(B, *shape, device="cuda"), torch.rand(B, device="cuda")).device.type == "cuda"
