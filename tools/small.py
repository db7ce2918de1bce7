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

PRECISIONS = click.Choice(["auto", "fp32", "bf16"])
TIMEOUT = 1200.0  # seconds that a command may take


def change(path: Path, settings: dict[str, Any]) -> None:
    """Set dotted keys of a YAML file, whose comments stay."""
    yaml = YAML()
    values = with_settings(yaml.load(path), [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    yaml.dump(values, path)


def copy_project(target: Path) -> Path:
    """Copy the working tree, without ignored files and the pipeline's results, into a new git repository.

    Its params.yaml has the values of small.yaml.
    """
    exclude = ("--exclude-standard", "--", ".", ":!artifacts", ":!dvc.lock")
    listed = run_in(ROOT, "git", "ls-files", "-z", "--cached", "--others", *exclude)
    if listed.returncode:
        raise InputError(f"{ROOT} is no git repository, whose files could be copied; make one: git init && git add .")
    for name in listed.stdout.split("\0"):
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


def run_or_fail(problem: str, folder: Path, *command: str, **environment: str) -> None:
    """Run a command as `run_in` does. Raises: InputError, the problem and the command's last line, where it fails."""
    try:
        done = run_in(folder, *command, **environment)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{problem}: it was stopped after {error.timeout:g} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"{problem}: {said[-1]}")


@click.command(help=__doc__, context_settings={"show_default": True})
@click.argument("folder", type=Path)
@click.option("--precision", type=PRECISIONS, default="fp32", help="auto is bf16 where this machine multiplies in it.")
def command(folder: Path, precision: str) -> None:
    if folder.exists():
        raise InputError(f"{folder} exists already; choose another folder, or remove it")
    project = copy_project(folder)
    change(project / "params.yaml", {key: precision for key in SMALL if key.endswith("precision")})
    run_or_fail(f"dvc repro failed in {folder}", project, "dvc", "repro", OMP_NUM_THREADS="1")


if __name__ == "__main__":
    run_command(command, "small")
