"""The set-up of `make` says in one line why it cannot go on, and leaves nothing behind."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

OLD = """#!/bin/sh
case "$1" in
  --version) echo "Python 3.9.2" ;;
  *) exit 1 ;;
esac
"""
NO_VENV = """#!/bin/sh
case "$2" in
  *ensurepip*) exit 1 ;;
esac
"""


@pytest.fixture
def clone(tmp_path) -> Path:
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    for name, text in (("old", OLD), ("no_venv", NO_VENV)):
        script = tmp_path / name
        script.write_text(text)
        script.chmod(0o755)
    return folder


@pytest.mark.parametrize("target", ["repro", "test"])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("PYTHON=../nosuch", "../nosuch is not installed; install Python 3.11 or newer"),
        ("PYTHON=../old", "Python 3.9.2 is too old; Python 3.11 or newer is needed"),
        ("PYTHON=../no_venv", "cannot make virtual environments; install its venv module"),
        ("NEEDED_MB=999999999", "less than 999999999 MB of disk space are free here"),
    ],
)
def test_setup_refuses_in_one_line(clone, target, settings, words):
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("MAKE")
    }  # the suite itself runs under make
    done = subprocess.run(["make", target, settings], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(lines) == 1, done.stderr
    assert words in lines[0]
    assert not (clone / ".venv").exists()


FAKE = """#!/bin/sh
case "$*" in
  *"-m venv"*) touch made; exit 1 ;;
esac
"""


def make(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=clone, env=environment, capture_output=True, text=True)


RECORDING = """#!/bin/sh
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  *"-m pip"*) echo "$*" >>words ;;
esac
"""


def test_torch_comes_from_the_index_that_is_named(clone):
    """First of all, so that what needs torch later finds it there; and an environment that is there stays."""
    (clone / "fake").write_text(RECORDING)
    (clone / "fake").chmod(0o755)
    settings = ["PYTHON=./fake", "NEEDED_MB=1", "TORCH_INDEX=https://example.org/cpu"]
    done = make(clone, "setup", *settings)
    assert done.returncode == 0, done.stderr
    first, second = (clone / "words").read_text().splitlines()
    assert first.endswith("--index-url https://example.org/cpu torch torchvision")
    assert "--index-url" not in second
    again = make(clone, "setup", *settings)
    assert "make: .venv is there and stays as it is; make clean first to take torch from https" in again.stdout
    assert len((clone / "words").read_text().splitlines()) == 2


def test_an_archive_without_git_says_that_the_tests_need_it(clone):
    (clone / "fake").write_text(RECORDING)
    (clone / "fake").chmod(0o755)
    shutil.rmtree(clone / ".git")
    for target in ("test", "test-fast"):
        done = make(clone, target, "PYTHON=./fake", "NEEDED_MB=1")
        assert done.returncode != 0
        assert "make: the tests need a git repository, which an archive is not: git init && git add ." in done.stderr
    assert not (clone / "words").exists()


@pytest.mark.parametrize(("moved", "made"), [(False, False), (True, True)])
def test_the_environment_of_a_folder_that_was_moved_is_made_anew(clone, moved, made):
    """Its scripts hold the path of the folder."""
    (clone / "fake").write_text(FAKE)
    (clone / "fake").chmod(0o755)
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/bin/python").write_text("#!/bin/sh\nexit 3\n")
    (clone / ".venv/.ready").write_text(f"{clone}{'/elsewhere' if moved else ''}\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(["make", "repro", "PYTHON=./fake", "NEEDED_MB=1"], cwd=clone, env=environment, check=False)
    assert done.returncode != 0
    assert (clone / "made").exists() == made
    assert (clone / ".venv/bin/python").exists() != made
