"""The same on a GPU: training learns, resumes and never waits for the device; results are the CPU's, to rounding."""

import hashlib
import json
import math
import sys
import warnings
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_here, run_in
from test_fake_cuda import NOISY
from torch import Tensor

from ldm import artifacts
from ldm.diffusion import Denoiser, DiffusionLoss, Objective, predictions, schedules
from ldm.networks import Posterior, Standardiser, autoencoder, classifier
from ldm.precision import ieee_fp32
from ldm.sampling import Guided, Streams, last_state, sample_batches, samplers, spacings, states
from ldm.sampling.classes import class_seen
from ldm.training.loop import Batches, Record, Training
from stages.runner.parameters import PARAMS, read_section
from stages.train_classifier import Config as ClassifierConfig
from stages.train_diffusion import Config
from stages.train_vae import Config as VAEConfig

DEVICE = "cuda"
SHAPE, CLASSES, N = (2, 7, 7), 10, 1000
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="these tests need a GPU, and there is none here")


@pytest.fixture(autouse=True)
def fp32_of_ieee_754():
    with ieee_fp32():
        yield


@contextmanager
def no_waits():
    """Within it torch raises an error at whatever makes the CPU wait for the GPU."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode is said to be a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def config(**optimisation) -> Config:
    """The pipeline's own choice of network, schedule and loss, for a run as short as a test."""
    values = read_section(ROOT / PARAMS, "train_diffusion")
    short = {"warmup": 0, "record_every": 10, "steps": 100, "ema_decay": 0.9} | optimisation
    values |= {"guide_step": short["record_every"], "optimisation": values["optimisation"] | short}
    return Config.parse(values, "train_diffusion")


def data(device: str = DEVICE) -> tuple[Posterior, Tensor]:
    """Latents of unit variance that are nearly one pattern for each class, and their classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % CLASSES
    mean = torch.randn(CLASSES, *SHAPE, generator=generator)[labels]
    return Posterior(mean.to(device), torch.full_like(mean, -6.0).to(device)), labels.to(device)


def training(config: Config, seed: int = 0) -> Training:
    """As in the stage train_diffusion."""
    torch.manual_seed(seed)
    generator = torch.Generator(DEVICE).manual_seed(seed)
    posterior, labels = data()
    denoiser = Denoiser.from_config(config.resolved(), SHAPE, [N // CLASSES] * CLASSES)
    denoiser.network.to(DEVICE).train()
    loss = DiffusionLoss(config.build("penalty"), config.build("weighting"))
    objective = Objective(Standardiser.fit(posterior), loss, config.build("timestep_sampling"))
    order = Batches(N, config.optimisation.batch_size, generator)

    def batch_loss(index: Tensor) -> Tensor:
        return objective(denoiser, posterior.at(index), labels[index], generator).mean()

    return Training(denoiser.network, batch_loss, config.optimisation, order)


def records(run: Training, until: int) -> list[float]:
    """The losses of the records up to a step."""
    found = [run.advance() for _ in range(until - run.step)]
    return [record.loss for record in found if record is not None]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_pipelines_network_learns(precision):
    run = training(config(precision=precision))
    losses = records(run, 100)
    assert len(losses) == 10
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[:4] == sorted(losses[:4], reverse=True)
    assert losses[-1] < 0.1 * losses[0]
    assert run.sums[1] == 0  # no step was skipped
    assert all(tensor.device.type == torch.device(DEVICE).type for tensor in run.network.state_dict().values())


def test_a_resumed_training_goes_on_to_the_same_loss():
    """The state passes by the CPU; another seed's own steps would lead elsewhere."""
    short = config(record_every=1, precision="fp32")
    run, other = training(short), training(short, seed=1)
    records(run, 8)
    state = run.state()
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}
    on = records(run, 12)
    elsewhere = records(other, 12)[-4:]
    other.load_state(state)
    assert other.step == 8
    again = records(other, 12)
    assert again == pytest.approx(on, rel=1e-3)
    assert elsewhere != pytest.approx(on, rel=1e-2)
    for a, b in zip(run.averaged.parameters(), other.averaged.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_no_step_waits_for_the_device():
    """Between two records torch would raise an error at whatever makes the CPU wait; an epoch ends in between, too."""
    run = training(config(record_every=50))
    records(run, 10)  # what is loaded and allocated for the first time may wait
    with no_waits():
        for _ in range(30):
            run.advance()
        with pytest.raises(RuntimeError, match="synchroniz"):  # the check itself notices a wait
            run.sums.tolist()
    assert run.step == 40


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("stage", ["train_classifier", "train_second_classifier", "train_vae", "train_diffusion"])
def test_no_step_of_a_stage_waits(stage, capture, project, tmp_path, monkeypatch):
    """Each training as a command, its step taken one by one and as a CUDA graph."""
    advance, watched = Training.advance, []

    def without_waits(self: Training, *arguments: float | None) -> Record | None:
        if not 10 <= self.step < 40:
            return advance(self, *arguments)
        watched.append(self.graph is not None)
        with no_waits():
            return advance(self, *arguments)

    monkeypatch.setattr(Training, "advance", without_waits)
    values = {"steps": 50, "record_every": 50, "warmup": 0, "capture": json.dumps(capture)}
    settings = [f"optimisation.{key}={value}" for key, value in values.items()]
    settings += ["guide_step=50"] if stage == "train_diffusion" else []
    options = [option for setting in settings for option in ("--set", setting)]
    options += ["--device", DEVICE, "--no-resume", "--out", str(tmp_path)]
    done = run_here(project, import_module(f"stages.{stage}").main, stage, *options)
    assert done.returncode == 0, done.stderr
    assert watched == [capture] * 30


def test_a_recorded_step_is_the_step():
    """Fifty steps as a CUDA graph, which draws from the same generator, end where fifty taken one by one do."""
    found = []
    for capture in (False, True):
        run = training(config(precision="fp32", capture=capture))
        found.append(records(run, 50))
        assert (run.graph is not None) == capture
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_a_recorded_training_resumes():
    """The state of one is taken up by another, which had recorded a step of its own."""
    short = config(record_every=1, precision="fp32", capture=True)
    run, other = training(short), training(short, seed=1)
    records(run, 8)
    records(other, 10)
    state = run.state()
    on = records(run, 12)
    other.load_state(state)
    assert records(other, 12) == pytest.approx(on, rel=1e-3)
    assert other.graph is not None


def test_no_evaluation_waits_for_the_device():
    """Of a denoiser, and of one with a guide, within its interval and beyond."""
    denoiser = Denoiser(training(config()).network, schedules.build("rectified_flow"), predictions.build("flow"))
    guided = Guided(denoiser, denoiser, weight=1.5, sigma_min=0.3, sigma_max=4.0)
    x, labels = torch.randn(4, *SHAPE, device=DEVICE), torch.arange(4, device=DEVICE)
    sigmas = [torch.tensor(sigma, dtype=torch.float64) for sigma in (math.inf, 3.0, 0.1)]
    with torch.inference_mode():
        guided(x, sigmas[1], labels)
        with no_waits():
            found = [denoise(x, sigma, labels) for sigma in sigmas for denoise in (denoiser, guided)]
    assert all(x0.isfinite().all() for x0 in found)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in sorted(samplers.functions)), *NOISY])
def test_no_step_of_a_sampler_waits(name, options):
    """With its noise: the CPU runs ahead until it asks for the sample."""
    network = alive(training(config()).network)
    denoiser = Denoiser(network, schedules.build("rectified_flow"), predictions.build("flow"))
    sampler = samplers.build(name, options)
    sigmas, labels = spacings.build("trailing")(denoiser.schedule, 4), torch.arange(4, device=DEVICE)
    first, again = (Streams(0, range(4), SHAPE, DEVICE) for _ in range(2))
    with torch.inference_mode():
        expected = last_state(states(denoiser, sampler, sigmas, first, labels))
        with no_waits():
            found = last_state(states(denoiser, sampler, sigmas, again, labels))
    torch.testing.assert_close(found, expected)


def alive(module: torch.nn.Module) -> torch.nn.Module:
    """Without the zeros that a residual branch starts with."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return module.eval()


def agree(ours: Tensor, cpus: Tensor, error: float = 1e-2) -> None:
    """To a relative error of the whole."""
    assert ours.device.type == torch.device(DEVICE).type
    assert (ours.cpu() - cpus).norm() < error * cpus.norm()
    assert cpus.isfinite().all()


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddpm"])
def test_samples_are_those_of_the_cpu(sampler, tmp_path):
    """With the pipeline's guidance: the noise, the classes and the levels are the same on all devices."""
    values, sizes = config().resolved(), [N // CLASSES] * CLASSES
    for seed, kind in enumerate(["denoiser", "guide"]):
        torch.manual_seed(seed)
        network = alive(Denoiser.from_config(values, SHAPE, sizes).network)
        about = values | {"shape": list(SHAPE), "class_sizes": sizes}
        artifacts.save(tmp_path / f"{kind}.safetensors", kind, network.state_dict(), about)
    trained = [artifacts.load(tmp_path / f"{kind}.safetensors", kind) for kind in ("denoiser", "guide")]
    found, seen = {}, {}
    for device in ("cpu", DEVICE):
        guided = Guided.from_artifacts(*trained, device=device, weight=1.25, sigma_min=0.3, sigma_max=4.0)
        sigmas = spacings.build("trailing")(guided.schedule, 12)
        with torch.inference_mode():
            drawn = list(
                sample_batches(guided, samplers.build(sampler), sigmas, [range(5), range(5, 9)], seed=3, shown=2)
            )
        found[device] = torch.cat([batch.x for batch in drawn]), torch.cat([batch.labels for batch in drawn])
        x = torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
        with torch.inference_mode():
            seen[device] = class_seen(guided.main, x, Streams(5, range(200), SHAPE, device)).cpu()
        assert drawn[0].trajectory.device.type == "cpu"
        assert drawn[0].trajectory.shape == (2, 13, *SHAPE)
    agree(found[DEVICE][0], found["cpu"][0])
    assert found[DEVICE][1].tolist() == found["cpu"][1].tolist()
    assert (seen[DEVICE] == seen["cpu"]).float().mean() > 0.95  # rounding decides where two classes fit equally well
    assert len(seen["cpu"].unique()) > 1
    spread = found["cpu"][0] - found["cpu"][0].mean(0)
    assert spread.norm() > 0.1 * found["cpu"][0].norm()  # the samples differ


def images() -> Tensor:
    return torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_encoding_and_decoding_agree_with_the_cpu():
    values = VAEConfig.parse(read_section(ROOT / PARAMS, "train_vae"), "train_vae").resolved()
    torch.manual_seed(0)
    vae = autoencoder.from_config(values, (1, 28, 28)).eval()
    cpus = autoencoder.encode_images(vae, images(), 16)
    pixels = autoencoder.decode_images(vae, cpus.mean, 16)
    vae.to(DEVICE)
    ours = autoencoder.encode_images(vae, images().to(DEVICE), 16)
    agree(ours.mean, cpus.mean)
    agree(ours.log_variance, cpus.log_variance)
    difference = (autoencoder.decode_images(vae, cpus.mean.to(DEVICE), 16).cpu().int() - pixels.int()).abs()
    assert difference.max() <= 2  # grey levels


@pytest.mark.parametrize("stage", ["train_classifier", "train_second_classifier"])
def test_features_agree_with_the_cpu(stage):
    values = ClassifierConfig.parse(read_section(ROOT / PARAMS, stage), stage).resolved()
    torch.manual_seed(0)
    network = classifier.Classifier.from_config(values, (1, 28, 28), CLASSES).eval()
    cpus = classifier.in_batches(network.features, images(), 16)
    network.to(DEVICE)
    agree(classifier.in_batches(network.features, images().to(DEVICE), 16), cpus, error=1e-4)


@pytest.mark.slow
def test_the_deterministic_switch_gives_the_same_bytes_again(tmp_path):
    """train_diffusion as a command: every operation of its step has a deterministic form."""
    posterior, labels = data("cpu")
    splits = {"train": slice(0, 800), "validation": slice(800, 900), "test": slice(900, N)}
    pixels = {f"{name}_images": torch.zeros(len(labels[part]), 1, 28, 28).byte() for name, part in splits.items()}
    classes = {f"{name}_labels": labels[part].byte() for name, part in splits.items()}
    about = {"class_names": [str(label) for label in range(CLASSES)]}
    artifacts.save(tmp_path / "images.safetensors", "images", pixels | classes, about)
    parents = [artifacts.load(tmp_path / "images.safetensors", "images")]
    latents = {
        f"{name}_{of}": getattr(posterior.at(part), of) for name, part in splits.items() for of in posterior._fields
    }
    moments = Standardiser.fit(posterior)
    latents |= {"channel_mean": moments.mean, "channel_std": moments.std}
    artifacts.save(tmp_path / "latents.safetensors", "latents", latents, {}, parents)
    settings = ["optimisation.steps=30", "optimisation.record_every=10", "guide_step=20"]
    options = [option for setting in settings for option in ("--set", setting)]
    options += [option for kind in ("images", "latents") for option in ("--in", f"{kind}={kind}.safetensors")]
    options += ["--recipe", str(ROOT), "--device", DEVICE, "--deterministic", "--no-resume"]
    digests = []
    for out in ("one", "two"):
        command = [sys.executable, "-m", "stages.train_diffusion", *options, "--out", out]
        done = run_in(tmp_path, *command, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
        digests.append({file.name: digest_of(file) for file in (tmp_path / out).iterdir()})
    assert sorted(digests[0]) == ["denoiser.safetensors", "guide.safetensors", "history.json"]
    assert digests[0] == digests[1]


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.slow
def test_the_table_agrees_with_the_cpus(project, tmp_path):
    done = run_in(project, sys.executable, "-m", "stages.evaluate", "--device", DEVICE, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    files = tmp_path / "measures.json", project / "artifacts/report/measures.json"
    here, there = (json.loads(path.read_text("utf-8"))["diffusion"] for path in files)
    assert here.keys() == there.keys()
    for key, value in there.items():
        assert here[key] == (pytest.approx(value, rel=0.01, abs=0.01) if isinstance(value, float) else value), key
