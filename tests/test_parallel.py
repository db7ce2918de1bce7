"""Several processes compute the same run as one."""

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

from ldm import artifacts, parallel
from ldm.errors import InputError

pytestmark = pytest.mark.slow
SHORT = ["--set", "optimisation.steps=60"]


@pytest.fixture(scope="module")
def copy(project, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("parallel") / "copy"
    shutil.copytree(project, target)
    shutil.rmtree(target / "scratch", ignore_errors=True)
    return target


def command(stage: str, out: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"stages.{stage}", *arguments, "--out", str(out)]


@pytest.mark.parametrize(("stage", "kind"), [("train_vae", "vae"), ("train_diffusion", "denoiser")])
def test_two_processes_train_as_one(copy, tmp_path, stage, kind):
    for name, processes in (("one", "1"), ("two", "2")):
        done = run_in(copy, *command(stage, tmp_path / name, *SHORT), LDM_PROCESSES=processes, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
    one, two = (artifacts.load(tmp_path / name / f"{kind}.safetensors", kind) for name in ("one", "two"))
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    losses = [[row["loss"] for row in read_history(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != losses[1]  # the rounding of two halves: there were two processes
