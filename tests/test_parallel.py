"""Several processes compute the same run as one."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import run_in
from torch import nn

from ldm import artifacts, parallel
from ldm.errors import InputError

pytestmark = pytest.mark.slow
KINDS = {"train_vae": "vae", "train_diffusion": "denoiser"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def copy(project, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("parallel") / "copy"
    shutil.copytree(project, target)
    shutil.rmtree(target / "scratch", ignore_errors=True)
    return target


def command(stage: str, out: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"stages.{stage}", *arguments, "--out", str(out)]


def start(copy: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """A training of the autoencoder by two processes."""
    env = os.environ | {"PYTHONPATH": str(copy), "LDM_PROCESSES": "2"} | ONE_THREAD
    return subprocess.Popen(command("train_vae", out, *arguments), cwd=copy, env=env, stderr=subprocess.PIPE, text=True)


def kill_all(pid: int) -> None:
    """torchrun and the processes it started, which are in sessions of their own."""
    parent = psutil.Process(pid)
    for process in [parent, *parent.children(recursive=True)]:
        process.kill()


def states(copy: Path) -> list[Path]:
    return sorted((copy / "scratch/train_vae").glob("*/[0-9]*.safetensors"))


def digests(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir()} if out.exists() else {}


@pytest.fixture(scope="module")
def trained(copy, tmp_path_factory) -> dict[str, dict[int, Path]]:
    """Stage → number of processes → the outputs."""
    folder = tmp_path_factory.mktemp("trained")
    for stage in KINDS:
        for processes in (1, 2):
            out = folder / f"{stage}-{processes}"
            done = run_in(copy, *command(stage, out), LDM_PROCESSES=str(processes), **ONE_THREAD)
            assert done.returncode == 0, done.stderr
    return {stage: {n: folder / f"{stage}-{n}" for n in (1, 2)} for stage in KINDS}


@pytest.mark.parametrize("stage", KINDS)
def test_two_processes_train_as_one(trained, stage):
    kind = KINDS[stage]
    one, two = (artifacts.load(trained[stage][n] / f"{kind}.safetensors", kind) for n in (1, 2))
    torch.testing.assert_close(two.tensors, one.tensors, rtol=1e-3, atol=1e-4)
    losses = [[row["loss"] for row in json.loads((trained[stage][n] / "history.json").read_text())] for n in (1, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != losses[1]  # the rounding of two halves: there were two processes


def test_two_processes_draw_the_same_samples(copy, tmp_path):
    """The second process has none of them where there is one batch."""
    for batch_size in ("70", "300"):
        for processes in ("1", "2"):
            out = tmp_path / f"{batch_size}-{processes}"
            done = run_in(copy, *command("sample", out, "--set", f"batch_size={batch_size}"), LDM_PROCESSES=processes, **ONE_THREAD)
            assert done.returncode == 0, done.stderr
        assert digests(tmp_path / f"{batch_size}-1") == digests(tmp_path / f"{batch_size}-2")


@pytest.mark.parametrize(("items", "world"), [(1, 2), (5, 2), (20, 3), (0, 2), (7, 7)])
def test_parts_are_all_of_a_list_in_order(monkeypatch, items, world):
    monkeypatch.setattr(parallel, "world", lambda: world)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        parts.append(parallel.part(range(items)))
    assert [item for part in parts for item in part] == list(range(items))
    assert len(parts[0]) == max(map(len, parts))


def test_dropout_is_refused_in_several_processes(monkeypatch):
    monkeypatch.setattr(parallel, "world", lambda: 2)
    with pytest.raises(InputError, match=r"dropout 0\.1 \(1\) would differ between processes; set it to 0, or train in one process"):
        parallel.objective(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), lambda: torch.zeros(()))


def test_kills_of_two_processes_change_nothing(copy, trained, tmp_path):
    rng, out = random.Random(0), tmp_path / "out"
    shutil.rmtree(copy / "scratch")
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        before = states(copy)[-1:]
        process = start(copy, out, "--save-every", "0")
        while process.poll() is None and states(copy)[-1:] == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        if number == signal.SIGKILL:
            kill_all(process.pid)
        else:
            process.send_signal(number)  # torchrun passes it on
        _, error = process.communicate(timeout=60)
        assert process.returncode != 0
        assert not digests(out)
        if number == signal.SIGTERM:
            assert "train_vae: interrupted; run the same command again, or dvc repro, to go on from scratch/train_vae/" in error
            assert "nothing could be kept" not in error
    process = start(copy, out)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "going on from scratch/train_vae/" in error
    assert digests(out) == digests(trained["train_vae"][2])


def test_the_death_of_one_process_ends_the_run(copy, tmp_path):
    shutil.rmtree(copy / "scratch", ignore_errors=True)
    process = start(copy, tmp_path / "out", "--save-every", "0", "--set", "optimisation.steps=100000")
    while not states(copy):
        assert process.poll() is None
        time.sleep(0.01)
    second = [p for p in psutil.Process(process.pid).children(recursive=True) if p.environ().get("RANK") == "1"]
    second[0].kill()
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Signal 9" in error
    assert not digests(tmp_path / "out")


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("train_vae", ["--processes", "3"], "batch_size 128 is not divisible by 3 processes; choose a multiple of 3"),
        ("train_vae", ["--processes", "0"], "0 is not in the range x>=1"),
    ],
)
def test_mistakes_are_said_before_the_start(copy, tmp_path, stage, arguments, message):
    done = run_in(copy, *command(stage, tmp_path, *arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_stage_of_one_process_refuses_torchrun(copy, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--module", "stages.train_classifier"]
    done = run_in(copy, *torchrun, "--out", str(tmp_path), **ONE_THREAD)
    assert done.returncode != 0
    assert "train_classifier: this stage runs in one process; start it without torchrun" in done.stderr
