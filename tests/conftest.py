"""Fixtures: real digits, and a copy of the project with small parameters that the whole pipeline ran in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

if "PYTEST_XDIST_WORKER" in os.environ:  # files of tests run side by side
    os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]

# what the small run changes in params.yaml, by dotted key
SMALL = {
    "prepare_data.source": "embedded",
    "prepare_data.limit": 300,
    "train_classifier.optimisation.steps": 60,
    "train_classifier.optimisation.record_every": 10,
    "train_second_classifier.optimisation.steps": 40,
    "train_second_classifier.optimisation.record_every": 10,
    "train_vae.optimisation.steps": 40,
    "train_vae.optimisation.record_every": 10,
    "train_diffusion.networks.unet.width": 16,
    "train_diffusion.optimisation.steps": 40,
    "train_diffusion.guide_step": 20,
    "train_diffusion.optimisation.batch_size": 64,
    "train_diffusion.optimisation.record_every": 10,
    "sample.n": 300,
    "sample.steps": 6,
    "evaluate.n": 300,
    "evaluate.resamples": 3,
    "evaluate.kid_subsets": 3,
    "memorisation.n": 300,
}


def change(path: Path, settings: dict[str, Any]) -> None:
    """Set dotted keys of a YAML file."""
    yaml = YAML()
    values = yaml.load(path.read_text())
    for key, value in settings.items():
        place, *parts = values, *key.split(".")
        for part in parts[:-1]:
            place = place[part]
        assert parts[-1] in place, key
        place[parts[-1]] = value
    with path.open("w") as file:
        yaml.dump(values, file)


def run_in(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment in a folder, with the folder's own code."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1"} | environment
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command in the project's folder."""
    return lambda *command, **environment: run_in(ROOT, *command, **environment)


def copy_project(target: Path) -> Path:
    """The files that git tracks, or would, in a new repository of their own; params.yaml is small."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file() and not name.startswith("artifacts/") and name != "dvc.lock":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)
    change(target / "params.yaml", SMALL)
    return target


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which `dvc repro` has run on a few hundred real digits."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    done = run_in(folder, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
