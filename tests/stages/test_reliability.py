"""Nothing is ever lost: runs are killed, signalled, corrupted and starved of disk, and end with the same bytes."""

import errno
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import change, run_in
from torch import nn

from ldm import artifacts
from ldm.config import Section
from ldm.errors import InputError
from ldm.training.loop import Batches, Training
from ldm.training.settings import Optimisation
from stages.runner import checkpoints

pytestmark = pytest.mark.slow
STAGES = ["train_classifier", "train_vae", "train_diffusion", "sample"]
SHORT = {stage: ["optimisation.steps=60", "optimisation.batch_size=16"] for stage in STAGES} | {
    "sample": ["batch_size=10"]
}
MODULES = [
    "pytest",
    "torch._dynamo",
    *(f"stages.{stage}" for stage in STAGES),
    "ldm.training.loop",
    "ldm.sampling.reverse",
    "ldm.networks.classifier",
    "ldm.networks.unet",
    "ldm.networks.autoencoder",
    "torchvision",
]
WARM = multiprocessing.get_context("forkserver")  # processes to be killed, that need not import torch first
WARM.set_forkserver_preload(MODULES)


def run_stage(work: Path, stage: str, arguments: list[str], log: Path, die: str | None) -> None:
    """In a process of its own: the stage's command; it may die in the midst of keeping a state."""
    os.chdir(work)
    sys.stderr = log.open("a")
    sys.argv = [stage, *arguments]
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if "/checkpoints/" in path and path.endswith(".tmp") == (die != "after the rename"):
            if die == "disk full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            os._exit(9)
        real(descriptor)

    if die:
        os.fsync = fsync
    try:
        import_module(f"stages.{stage}").main()
    finally:
        sys.stderr.flush()


@dataclass
class Work:
    """A copy of the finished project, in which a stage runs again and again."""

    folder: Path
    stage: str
    out: Path

    def start(self, *arguments: str, die: str | None = None) -> Process:
        self.log = self.out.with_name("log")
        self.log.unlink(missing_ok=True)
        settings = [a for s in SHORT[self.stage] for a in ("--set", s)]
        process = WARM.Process(
            target=run_stage,
            args=(self.folder, self.stage, [*settings, "--out", str(self.out), *arguments], self.log, die),
        )
        process.start()
        return process

    def run(self, *arguments: str, die: str | None = None) -> tuple[int | None, str]:
        """Exit code and standard error."""
        process = self.start(*arguments, die=die)
        process.join(300)
        return process.exitcode, self.log.read_text()

    def stop(self, number: int, rng: random.Random) -> tuple[int | None, str]:
        """Run until there is a new state and a moment longer, then signal."""
        before = self.states()[-1:]
        process = self.start("--save-every", "0")
        while process.is_alive() and self.states()[-1:] == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        assert process.is_alive(), self.log.read_text()
        os.kill(process.pid, number)
        process.join(60)
        return process.exitcode, self.log.read_text()

    def states(self) -> list[Path]:
        return sorted((self.folder / "checkpoints" / self.stage).glob("*/[0-9]*.safetensors"))

    def outputs(self) -> dict[str, str]:
        """Their digests."""
        return (
            {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in self.out.iterdir()}
            if self.out.exists()
            else {}
        )

    def forget(self) -> None:
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        shutil.rmtree(self.out, ignore_errors=True)


class Dummy(Section):
    """A configuration without parameters."""


@pytest.fixture(scope="module")
def copy(project, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("reliability") / "copy"
    shutil.copytree(project, target)
    return target


@pytest.fixture
def work(copy, tmp_path) -> Work:
    work = Work(copy, "train_vae", tmp_path / "out")
    work.forget()
    return work


@pytest.mark.parametrize("stage", STAGES)
def test_no_interruption_changes_a_bit(stage, work):
    """Kills at random moments, death in the midst of keeping a state, and signals: 36 in four stages."""
    work.stage = stage
    assert work.run() == (0, mock.ANY)
    wanted = work.outputs()
    work.forget()
    rng = random.Random(stage)
    for how in [
        "kill",
        "kill",
        "before the rename",
        "kill",
        signal.SIGINT,
        "after the rename",
        "kill",
        signal.SIGTERM,
        "kill",
    ]:
        if how in ("before the rename", "after the rename"):
            code, said = work.run("--save-every", "0", die=how)
            assert code == 9, said
        elif how == "kill":
            code, said = work.stop(signal.SIGKILL, rng)
            assert code == -signal.SIGKILL, said
        else:
            code, said = work.stop(how, rng)
            assert code == 128 + how, said
            assert (
                f"{stage}: interrupted; run the same command again, or dvc repro, to resume from checkpoints/{stage}/"
                in said.splitlines()[-1]
            )
        assert "Traceback" not in said
        assert work.outputs().keys() <= {"history.json"}  # the others appear at the end, whole
        for path in work.states():
            artifacts.load(path, "state")
    code, said = work.run()
    assert code == 0, said
    assert f"{stage}: resuming from checkpoints/{stage}" in said
    assert work.outputs() == wanted
    assert not list(work.folder.glob("checkpoints/**/*.tmp"))


class TestOneStage:
    """What needs no repetition over the stages, on the autoencoder's training."""

    @pytest.fixture
    def stopped(self, work) -> Work:
        """A run that died and left two states."""
        while len(work.states()) < 2:
            code, said = work.stop(signal.SIGKILL, random.Random(0))
            assert code == -signal.SIGKILL, said
        return work

    def test_a_corrupt_state_falls_back_to_the_one_before(self, stopped):
        first, last = stopped.states()[-2:]
        last.write_bytes(last.read_bytes()[:-100])
        code, said = stopped.run()
        assert code == 0, said
        assert f"{last.relative_to(stopped.folder)} is corrupt, and left out" in said
        assert f"resuming from {first.relative_to(stopped.folder)}" in said
        resumed = stopped.outputs()
        assert stopped.run("--no-resume") == (0, mock.ANY)
        assert stopped.outputs() == resumed

    def test_states_of_other_parameters_are_never_taken(self, stopped):
        folder = stopped.states()[0].parent
        code, said = stopped.run("--set", "kl_weight=0.03")
        assert code == 0, said
        assert "resuming" not in said
        assert "an unfinished run has left checkpoints in" in said
        assert "kl_weight is 0.02 there and 0.03 here" in said
        assert list(folder.glob("*.safetensors"))  # of an unfinished run: they stay

    def test_a_failure_after_the_training_removes_no_states(self, stopped):
        """The training of other parameters ends, and scoring it fails."""
        states = stopped.states()
        (stopped.out / "metrics.json").mkdir(parents=True)
        code, said = stopped.run("--set", "kl_weight=0.03")
        assert code == 2, said
        assert "Is a directory" in said
        assert set(states) < set(stopped.states())

    def test_states_that_memory_does_not_hold_are_kept(self, stopped, monkeypatch):
        monkeypatch.setattr(artifacts, "safetensors_torch", mock.Mock(load_file=mock.Mock(side_effect=MemoryError)))
        waiting = mock.Mock(_paths=lambda: [stopped.states()[-1]])
        with pytest.raises(MemoryError):
            checkpoints.Checkpoints.latest(waiting)
        assert len(stopped.states()) >= 2

    def test_the_last_state_outlives_the_run(self, stopped):
        """DVC can fail after the script has ended; the next run ends at once, with the same bytes."""
        assert stopped.run() == (0, mock.ANY)
        wanted = stopped.outputs()
        shutil.rmtree(stopped.out)
        code, said = stopped.run()
        assert code == 0
        assert "/000000060.safetensors" in said
        assert stopped.outputs() == wanted

    def test_a_full_disk_costs_no_more_than_the_state(self, work):
        code, said = work.run(die="disk full")
        assert code == 0, said
        assert "no checkpoint could be written" in said
        assert os.strerror(errno.ENOSPC) in said
        assert not list(work.folder.glob("checkpoints/**/*.tmp"))
        starved = work.outputs()
        assert work.run("--no-resume") == (0, mock.ANY)
        assert work.outputs() == starved

    def test_the_deterministic_switch_changes_nothing_on_a_cpu(self, work):
        assert work.run() == (0, mock.ANY)
        wanted = work.outputs()
        code, said = work.run("--deterministic")
        assert code == 0, said
        assert "resuming" not in said
        assert work.outputs() == wanted


def test_dvc_repro_goes_on_after_a_kill(project, tmp_path):
    """SIGKILL for DVC and the stage alike, as by the system when memory is short."""
    folder = tmp_path / "copy"
    shutil.copytree(project, folder)
    change(folder / "params.yaml", {"train_vae.seed": 5})
    assert run_in(folder, sys.executable, "-m", "stages.train_vae", "--out", str(tmp_path / "out")).returncode == 0
    shutil.rmtree(folder / "checkpoints")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(folder), "LDM_SAVE_EVERY": "0", "DVC_NO_ANALYTICS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    dvc = subprocess.Popen(["dvc", "repro", "train_vae"], cwd=folder, env=env, **quiet)
    while not list(folder.glob("checkpoints/train_vae/*/[0-9]*.safetensors")):
        assert dvc.poll() is None
        time.sleep(0.01)
    os.killpg(dvc.pid, signal.SIGKILL)
    dvc.wait()
    assert not (folder / "artifacts/train_vae/vae.safetensors").exists()
    done = run_in(folder, "dvc", "repro", "train_vae")
    assert done.returncode == 0, done.stderr
    assert "train_vae: resuming from checkpoints/train_vae/" in done.stderr
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (folder / "artifacts/train_vae" / path.name).read_bytes(), path.name


def training(settings: Optimisation) -> Training:
    """A network with dropout, batch norm and channels last, so that torch's own stream, buffers and layouts count."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, 2, 5, 5, generator=torch.Generator().manual_seed(2))
    network = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Dropout(0.3), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1)
    )
    network.to(memory_format=torch.channels_last)
    order = Batches(50, 8, generator)

    def loss(index: torch.Tensor) -> torch.Tensor:
        batch = x[index]
        noise = torch.randn(batch.shape, generator=generator)
        return (network(batch + noise) - batch).square().mean()

    return Training(network, loss, settings, order)


@pytest.mark.parametrize("at", [1, 9, 10, 23])
def test_a_restored_training_goes_on_to_the_same_bits(at, tmp_path):
    values = SMALL_TRAINING | {"steps": 40, "muon_lr": 0.02, "warmup": 5, "weight_decay": 0.01}
    settings = Optimisation.parse(values, "optimisation")
    whole = training(settings)
    losses = [record.loss for record in (whole.advance() for _ in range(40)) if record]
    first = training(settings)
    found = [record.loss for record in (first.advance() for _ in range(at)) if record]
    state = first.state()
    first.advance()  # what was taken does not change with the run
    artifacts.save(tmp_path / "state.safetensors", "state", state, {})
    state = artifacts.load(tmp_path / "state.safetensors", "state").tensors
    torch.manual_seed(99)
    second = training(settings)
    torch.manual_seed(77)
    second.load_state(state)
    found += [record.loss for record in (second.advance() for _ in range(40 - at)) if record]
    assert found == losses
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


@pytest.mark.parametrize("kind", ["images", "denoiser", "state"])
def test_every_flipped_byte_is_noticed(kind, project, tmp_path):
    """300 flips of a bit and 100 truncations of each: artifacts and states."""
    if kind == "state":
        path = tmp_path / "state.safetensors"
        artifacts.save(path, "state", training(Optimisation.parse(SMALL_TRAINING, "x")).state(), {})
    else:
        path = next((project / "artifacts").rglob(f"{kind}.safetensors"))
    raw, rng = path.read_bytes(), random.Random(0)
    broken = tmp_path / "broken.safetensors"
    header = int.from_bytes(raw[:8], "little") + 8
    for i in range(400):
        spoilt = bytearray(raw)
        if i < 300:
            place = rng.randrange(header) if i % 3 == 0 else rng.randrange(len(raw))
            spoilt[place] ^= 1 << rng.randrange(8)
        else:
            del spoilt[rng.randrange(len(raw)) :]
        broken.write_bytes(spoilt)
        with pytest.raises(InputError, match=r"broken\.safetensors .*(rebuild|run) "):
            artifacts.load(broken, kind)


SMALL_TRAINING = {
    "steps": 4,
    "batch_size": 8,
    "lr": 0.01,
    "lr_final": 0.1,
    "warmup": 1,
    "betas": [0.9, 0.99],
    "weight_decay": 0.0,
}
SMALL_TRAINING |= {"clip_norm": 1.0, "ema_decay": 0.9, "max_skipped": 5, "record_every": 10, "precision": "fp32"}
