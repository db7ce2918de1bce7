"""Fixtures: a copy of the project with small parameters, in which the whole pipeline has run on real digits."""

import contextlib
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # files of tests run side by side
    os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `tools`, `recipes` and `bench` are those of this checkout
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from stages.runner.checkpoints import SIGNALS  # noqa: E402
from tools.small import SMALL, change, copy_project, run_in  # noqa: E402

__all__ = ["ROOT", "SMALL", "Run", "change", "copy_project", "run_in"]
NAME = "un projet à moi"
Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests begin first, so that in the end no process works alone; of them, the commands' first."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: str(item.path), reverse=True)
    items.sort(key=lambda item: item.path not in slow)


def run_stage(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a stage by `run_here`, on the CPU."""
    return run_here(folder, import_module(f"stages.{name}").main, name, "--device", "cpu", *arguments)


def run_here(folder: Path, main: Callable[[], None], name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder as `run_in` does, but in this process, which need not import torch anew.

    It has one thread, and the code of this checkout.
    """
    out, err, threads, code = io.StringIO(), io.StringIO(), torch.get_num_threads(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(mock.patch.dict(os.environ, OMP_NUM_THREADS="1"))
        stack.enter_context(mock.patch.object(sys, "argv", [name, *arguments]))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(1)
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return subprocess.CompletedProcess([name, *arguments], code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def no_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests compare bits, and those of a GPU are others; where there is one, the tests of test_cuda.py alone see it."""
    if request.path.name != "test_cuda.py":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def run() -> Run:
    """Run a command in the project's folder."""
    return lambda *command, **environment: run_in(ROOT, *command, **environment)


@pytest.fixture(autouse=True)
def handlers_of_signals():
    """They are put back: a command sets its own, and ends its process elsewhere."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which `dvc repro` has run on a few hundred real digits, on one thread of the CPU.

    Its path has spaces and letters beyond ASCII. Under xdist the first process that asks for it makes it, and each has
    a copy of its own.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / "project.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / NAME).exists():
            made = copy_project(shared / f"{NAME}.made")
            done = run_in(made, "dvc", "repro", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
            assert done.returncode == 0, done.stdout + done.stderr
            made.rename(shared / NAME)
    return shutil.copytree(shared / NAME, base / "own" / NAME)
