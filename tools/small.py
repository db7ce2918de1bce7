"""Run a small copy of the pipeline in a new folder: a few hundred real digits and a few dozen steps, on one thread.

small.yaml has its parameters. The tests work on such a run, and tools.same_bytes compares two of them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from ldm import InputError
from stages.runner import ROOT, read_yaml, run_command, with_settings

SMALL = read_yaml(Path(__file__).with_suffix(".yaml"))  # dotted keys of params.yaml → values
SOURCES = ("--", ".", ":!artifacts", ":!dvc.lock")  # for git: all but the pipeline's results
TIMEOUT = 1200.0  # seconds that a command may take


def change(path: Path, settings: dict[str, Any]) -> None:
    """Set dotted keys of a YAML file, whose comments stay."""
    yaml = YAML()
    values = with_settings(yaml.load(path), [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    yaml.dump(values, path)


def copy_project(target: Path, revision: str = "") -> Path:
    """Copy the working tree, or a revision, without ignored files and the results, into a new git repository.

    Its params.yaml has the values of small.yaml. Raises: InputError.
    """
    if revision:
        run_or_fail(revision, ROOT, "git", "archive", f"--output={target}.tar", revision, *SOURCES)
        shutil.unpack_archive(f"{target}.tar", target)
    else:
        command = "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *SOURCES
        for name in run_or_fail("the files of the project cannot be copied", ROOT, *command).split("\0"):
            if (ROOT / name).is_file():  # a file that was removed is still listed
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target / name)
    run_in(target, "git", "init", "-q")
    change(target / "params.yaml", SMALL)
    return target


def run_in(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this Python's environment in a folder, with the folder's own code."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1"} | environment
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT)


def run_or_fail(problem: str, folder: Path, *command: str, **environment: str) -> str:
    """What a command prints, run as by `run_in`.

    Raises: InputError, the problem and the command's last line, where it fails.
    """
    try:
        done = run_in(folder, *command, **environment)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{problem}: it was stopped after {error.timeout:g} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"{problem}: {said[-1]}")
    return done.stdout


def reproduce(project: Path) -> Path:
    """Run the pipeline of a copied project, on one thread. Returns the folder of its outputs. Raises: InputError."""
    run_or_fail(f"dvc repro failed in {project}", project, "dvc", "repro", OMP_NUM_THREADS="1")
    return project / "artifacts"


@click.command(help=__doc__)
@click.argument("folder", type=Path)
def command(folder: Path) -> None:
    if folder.exists():
        raise InputError(f"{folder} exists already; choose another folder, or remove it")
    reproduce(copy_project(folder))


if __name__ == "__main__":
    run_command(command, "small")
