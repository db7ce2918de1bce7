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

import pytest
import torch
from conftest import run_in

from ldm import artifacts

pytestmark = pytest.mark.slow
KINDS = {"train_vae": "vae", "train_diffusion": "denoiser"}
# two processes would take a GPU each, and the bits of a result are only the same on a CPU, with as many threads
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

# the rest of the words is a name and a command, which runs on a host of that name
RENAMED = ["unshare", "--user", "--map-root-user", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"']


def can_be_named(name: str) -> bool:
    return (
        bool(shutil.which("unshare")) and subprocess.run([*RENAMED, name, "true"], capture_output=True).returncode == 0
    )


@pytest.fixture(scope="module")
def copy(project, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("processes") / "copy"
    shutil.copytree(project, target)
    shutil.rmtree(target / "checkpoints", ignore_errors=True)
    return target


def command(stage: str, out: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"stages.{stage}", *arguments, "--out", str(out)]


def start(copy: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """A training of the autoencoder by two processes."""
    env = os.environ | {"PYTHONPATH": str(copy), "LDM_PROCESSES": "2"} | ONE_THREAD
    return subprocess.Popen(command("train_vae", out, *arguments), cwd=copy, env=env, stderr=subprocess.PIPE, text=True)


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that these started."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended since
            continue
        parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found = parents.get(pid, [])
    for child in found:  # the list grows while it is read
        found.extend(parents.get(child, []))
    return found


def kill_all(pid: int) -> None:
    """torchrun and the processes it started, which are in sessions of their own."""
    for number in [pid, *descendants(pid)]:
        os.kill(number, signal.SIGKILL)


def states(copy: Path) -> list[Path]:
    return sorted((copy / "checkpoints/train_vae").glob("*/[0-9]*.safetensors"))


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


def test_two_processes_draw_the_same_samples(copy, tmp_path):
    outs = [tmp_path / str(processes) for processes in (1, 2)]
    for processes, out in enumerate(outs, 1):
        arguments = command("sample", out, "--set", "batch_size=70")
        done = run_in(copy, *arguments, LDM_PROCESSES=str(processes), **ONE_THREAD)
        assert done.returncode == 0, done.stderr
    assert "samples.safetensors" in digests(outs[0])
    assert digests(outs[0]) == digests(outs[1])


def test_the_log_counts_the_processes(copy):
    """In the tracked place. There is one batch, so that the second process draws none; the samples are as before."""
    wanted = digests(copy / "artifacts/sample")
    done = run_in(copy, sys.executable, "-m", "stages.sample", LDM_PROCESSES="2", **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert digests(copy / "artifacts/sample") == wanted
    assert json.loads((copy / "artifacts/logs/sample.json").read_text())["processes"] == 2


def test_kills_of_two_processes_change_nothing(copy, trained, tmp_path):
    rng, out = random.Random(0), tmp_path / "out"
    shutil.rmtree(copy / "checkpoints")
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
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
        assert digests(out).keys() <= {"history.json"}
        if number == signal.SIGTERM:
            assert "train_vae: interrupted; run the same command again, or dvc repro, to resume from" in error
            assert str(states(copy)[-1].relative_to(copy)) in error
            assert "no checkpoint could be written" not in error
    process = start(copy, out)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "resuming from checkpoints/train_vae/" in error
    assert digests(out) == digests(trained["train_vae"][2])


def test_the_death_of_one_process_ends_the_run(copy, tmp_path):
    shutil.rmtree(copy / "checkpoints", ignore_errors=True)
    process = start(copy, tmp_path / "out", "--save-every", "0", "--set", "optimisation.steps=100000")
    while not states(copy):
        assert process.poll() is None
        time.sleep(0.01)
    [second] = [pid for pid in descendants(process.pid) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(second, signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Signal 9" in error
    assert digests(tmp_path / "out").keys() <= {"history.json"}


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("train_vae", ["--processes", "3"], "batch_size 128 is not divisible by 3 processes"),
        ("train_vae", ["--processes", "0"], "0 is not in the range x>=1"),
    ],
)
def test_mistakes_are_said_before_the_start(copy, tmp_path, stage, arguments, message):
    done = run_in(copy, *command(stage, tmp_path, *arguments), **ONE_THREAD)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not can_be_named("nosuch.invalid"), reason="this user may not rename the host")
def test_the_name_of_the_host_need_not_resolve(copy, tmp_path):
    """In a name space of its own the host has a name that no server knows."""
    words = [*RENAMED, "nosuch.invalid", *command("sample", tmp_path / "out", "--processes", "2")]
    done = run_in(copy, *words, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "out") == digests(copy / "artifacts/sample")


def test_a_stage_of_one_process_refuses_torchrun(copy, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run_in(copy, *torchrun, "--module", "stages.train_classifier", "--out", str(tmp_path), **ONE_THREAD)
    assert done.returncode != 0
    assert "train_classifier: this stage runs in one process; start it without torchrun" in done.stderr
