"""What a run keeps while it runs, so that it can be taken up again after any interruption.

A run's states lie in `scratch/<stage>/<key>/`, which git and DVC ignore. The key is a hash over all
that the run depends on, so the states of other parameters, inputs, code or machines are never taken.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ldm.errors import InputError, Interrupted
from stages.cli import warn

if TYPE_CHECKING:
    from types import FrameType

    from torch import Tensor

    from stages.cli import Job

SCRATCH = Path("scratch")
KEPT = 2  # states of a run
SIGNALS = (signal.SIGINT, signal.SIGTERM)
MIB = 1 << 20


def key_of(job: Job[Any]) -> str:
    """A hash over parameters, input artifacts, code, torch's version, the type of device, and processes and their threads."""
    import torch

    from ldm.parallel import world

    loaded = [(name, getattr(module, "__file__", None)) for name, module in sys.modules.items()]
    code = {Path(file).resolve() for name, file in loaded if file and name.partition(".")[0] in ("ldm", "stages", "__main__")}
    facts = {
        "parameters": job.config.resolved(),
        "inputs": {kind: _digest(path) for kind, path in job.inputs.items() if path.exists()},  # one that is not read may be missing
        "code": sorted((path.parent.name, path.name, _digest(path)) for path in code),
        "torch": torch.__version__,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "device": job.device.partition(":")[0],
        "processes": world(),
        "threads": torch.get_num_threads() if job.device == "cpu" else 0,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Scratch:
    """The states of one run, or of one process's share of it; `open_scratch` gives one."""

    def __init__(self, job: Job[Any], folder: Path, prefix: str = "") -> None:
        self.job, self.folder, self.prefix = job, folder, prefix
        self.signal = 0  # the one that asks to stop
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether an interval has passed since the last state."""
        return time.monotonic() - self._saved >= self.job.save_every

    def save(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Keep a state, the last two in all. A full disk costs no more than this state."""
        from ldm import artifacts

        try:
            artifacts.save(self.folder / f"{self.prefix}{number:09d}.safetensors", "state", tensors, {"stage": self.job.name})
            for old in self._paths()[:-KEPT]:
                old.unlink()
        except OSError as error:
            warn(self.job.name, f"the state could not be kept in {self.folder} ({error.strerror}); free space there")
        self._saved = time.monotonic()

    def interrupted(self, number: int) -> Interrupted:
        """What to raise after a signal."""
        paths = self._paths()
        how = f"run the same command again, or dvc repro, to go on from {paths[-1]}" if paths else "nothing could be kept of this run"
        return Interrupted(f"interrupted; {how}", 128 + number)

    def latest(self) -> dict[str, Tensor] | None:
        """The last state that is whole, or None. A corrupt one is named and passed over."""
        from ldm import artifacts

        for path in reversed(self._paths()):
            try:
                state = artifacts.load(path, "state")
            except (InputError, OSError):
                warn(self.job.name, f"{path} is corrupt, and left out")
                path.replace(path.with_suffix(".corrupt"))
                continue
            print(f"{self.job.name}: going on from {path}", file=sys.stderr)
            return state.tensors
        return None

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler while the run is under way: the state is kept first."""
        self.signal = number

    def finished(self) -> None:
        """The last state is kept: from now on a signal ends the run at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            raise self.interrupted(number)

        for number in SIGNALS:
            signal.signal(number, stop)

    def clear(self) -> None:
        """Remove the states."""
        for path in self._paths():
            path.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.prefix}[0-9]*.safetensors"))


def open_scratch(job: Job[Any]) -> Scratch:
    """The scratch of this run, for this process alone until the whole run has ended.

    SIGINT and SIGTERM are noted in it, and do not end the run. Under torchrun the first process
    holds it for all. After a success the states of other keys are removed; this run's stay, since
    DVC can fail after it. Raises: InputError where another process is at the same run.
    """
    return job.resources.enter_context(_open(job))


@contextmanager
def _open(job: Job[Any]) -> Iterator[Scratch]:
    from ldm.parallel import rank

    root, first = SCRATCH / job.name, rank() == 0
    folder = root / key_of(job)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Scratch(job, folder, "" if first else f"process{rank()}-")
    with (folder / f"{scratch.prefix}lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is at this very run, and holds {lock.name}; wait for it, or stop it") from None
        except OSError as error:
            raise InputError(f"{lock.name} cannot be locked ({error.strerror}); keep the project on a file system that has locks") from None
        for stray in folder.glob(f".{scratch.prefix}[0-9]*.tmp"):
            stray.unlink()
        if job.fresh:
            scratch.clear()
        before = {number: signal.signal(number, scratch.note) for number in SIGNALS}
        try:
            yield scratch
            for other in root.iterdir() if first else ():
                if other.is_dir() and other != folder and not _held(other):
                    shutil.rmtree(other, ignore_errors=True)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _held(folder: Path) -> bool:
    """Whether a process is at the run of a folder."""
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def check_space(name: str, folder: Path, disk: int, memory: int, activations: int) -> None:
    """Before a stage's long run: is there room, in bytes? Raises: InputError. Activations are a rule of thumb, and only warned of."""
    folder.mkdir(parents=True, exist_ok=True)
    free, available = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    if free < disk:
        raise InputError(f"{folder.resolve()} has {free // MIB} MiB of free disk space, but about {disk // MIB} MiB are needed; free some")
    if available < memory:
        raise InputError(f"{available // MIB} MiB of memory are free, but about {memory // MIB} MiB are needed; close other programs")
    if available < memory + activations:
        guess = f"perhaps {(memory + activations) // MIB} MiB are needed"
        warn(name, f"{available // MIB} MiB of memory are free, but {guess}; if it is not enough, lower batch_size")
