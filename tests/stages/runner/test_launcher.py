"""stages/run, which DVC's cmd: lines call: whose Python it takes, and what it says when something is missing."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

# answers the question for missing packages as told, and else says who it is and what it was called with
FAKE = """#!/bin/sh
if [ "$1" = -c ]; then echo "{missing}"; else echo "{name} $*"; fi
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with the launcher alone, and a PATH without any Python."""
    (tmp_path / "checkout/stages").mkdir(parents=True)
    shutil.copy2(ROOT / "stages/run", tmp_path / "checkout/stages")
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "dirname"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path / "checkout"


def put_python(path: Path, name: str, missing: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FAKE.format(name=name, missing=missing))
    path.chmod(0o755)


def launch(checkout: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {"PATH": str(checkout.parent / "bin")}
    command = [str(checkout / "stages/run"), *arguments]
    return subprocess.run(command, cwd=cwd or checkout, env=env, capture_output=True, text=True)


def test_it_is_committed_as_a_program():
    listed = subprocess.run(["git", "ls-files", "-s", "stages/run"], cwd=ROOT, capture_output=True, text=True).stdout
    assert listed.startswith("100755")


def test_the_python_beside_it_comes_first(checkout):
    put_python(checkout.parent / "bin/python", "of the PATH")
    done = launch(checkout, "stages.sample", "--set", "n=3 4")
    assert (done.returncode, done.stdout) == (0, "of the PATH -m stages.sample --set n=3 4\n")
    put_python(checkout / ".venv/bin/python", "of this checkout")
    for cwd in (checkout, checkout.parent):
        done = launch(checkout, "stages.sample", cwd=cwd)
        assert (done.returncode, done.stdout) == (0, "of this checkout -m stages.sample\n")


def test_a_temporary_workspace_takes_the_python_of_its_checkout(checkout):
    """`dvc exp run --temp` runs in a copy below .dvc/tmp, which has no environment."""
    put_python(checkout.parent / "bin/python", "of the PATH")
    put_python(checkout / ".venv/bin/python", "of this checkout")
    workspace = checkout / ".dvc/tmp/exps/tmpabc"
    shutil.copytree(checkout / "stages", workspace / "stages")
    done = launch(workspace, "stages.sample", cwd=workspace)
    assert (done.returncode, done.stdout) == (0, "of this checkout -m stages.sample\n")


def test_another_project_called_ldm_is_named(tmp_path):
    """Its name is that of others, too, which may come first on the path."""
    (tmp_path / "ldm.py").write_text("")
    for module in ("stages.decode", "tools.check", "recipes.toys.toy", "recipes.sweep.sweep", "recipes.sweep.report"):
        env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-m", module, "--help"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"ldm is {tmp_path / 'ldm.py'}, not the one in {ROOT}; remove it" in done.stderr
        assert done.stderr.count("\n") == 1


def test_without_python_it_says_so_in_one_line(checkout):
    done = launch(checkout, "stages.sample")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("stages/run: ")
    assert "no python on PATH; run 'make repro'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("place", ["bin/python", "checkout/.venv/bin/python"])
def test_missing_packages_are_named_in_one_line(checkout, place):
    put_python(checkout.parent / place, "python", missing="torch tqdm")
    done = launch(checkout, "stages.sample")
    assert (done.returncode, done.stdout) == (2, "")
    assert "lacks torch tqdm; run 'make repro'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_asks_for_every_package_that_a_stage_imports():
    """The declared ones, by the names that they are imported by."""
    match = re.search(r'wanted = """(.*?)"""', (ROOT / "stages/run").read_text(), re.DOTALL)
    assert match
    asked = match[1].split()
    assert [name for name in asked if not find_spec(name)] == []
    of = packages_distributions()
    owners = {owner.lower() for name in asked for owner in of[name]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in project["dependencies"]}
    assert declared - owners == set()


def test_it_runs_a_stage():
    env = os.environ | {"COLUMNS": "100"}
    command = ["stages/run", "stages.decode", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "batch_size = 500" in done.stdout
