"""What a run leaves beside its outputs, for git and DVC to ignore: checkpoints on its way, and a log at its end.

Checkpoints are the states from which it can be resumed after any interruption. They are in `checkpoints/<stage>/<key>`.
The key is a hash over all that the run depends on, so a run never resumes from the state of other parameters, inputs,
code or another kind of machine. Those of other runs are removed after a week.

The log says how long the stage's last run took, how much memory, on what; `report` shows it. It lies in artifacts/logs
of the pipeline or recipe; of a stage that runs for many folders there is one for each. A run by hand with --out leaves
none.
"""

import hashlib
import json
import platform
import resource
import shutil
import signal
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ldm import InputError, Interrupted, artifacts, training
from ldm.lazy import Tensor, torch
from stages.runner.processes import COUNT
from stages.runner.run import Run, warn

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("checkpoints")
LOGS = Path("artifacts/logs")  # below the folder of dvc.yaml
STATES = 2  # how many states of a run are kept, the newest ones
WEEK = 7 * 24 * 3600  # seconds
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def facts_of(run: Run[Any]) -> dict[str, Any]:
    """All that the result of a run depends on, for the key of its checkpoints."""
    main = Path(getattr(sys.modules["__main__"], "__file__", None) or __file__).resolve()
    recipe = [main.parent] if ROOT / "recipes" in main.parents else []
    return {
        "parameters": run.config.resolved() | ({"until": run.until} if run.until else {}),
        "inputs": {kind: digest_of(path) for kind, path in run.inputs.items() if path.exists()},
        "code": digests_of_code(ROOT, *recipe),
        "torch": torch.__version__,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "device": device_kind(run.device),
        "threads": torch.get_num_threads() if run.device == "cpu" else 0,
        "processes": training.distributed.world_size(),
    }


def device_kind(device: str) -> str:
    """The name of the GPU, or the kind of the CPU."""
    return cpu_kind() if device == "cpu" else torch.cuda.get_device_name(device)


def cpu_kind() -> str:
    """The vendor and the vector units of the CPU, on which the bits of a result depend."""
    file = Path("/proc/cpuinfo")  # which Linux alone has
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & set(values.get("flags", "").split())
    return " ".join([platform.machine(), values.get("vendor_id", ""), *sorted(units)])


def first_difference(here: Any, there: Any, path: str = "") -> str:
    """The first place in which two nested mappings differ, in words; empty where they are equal."""
    if not isinstance(here, dict) or not isinstance(there, dict):
        return "" if here == there else f"{path} is {str(there)[:40]} there and {str(here)[:40]} here"
    differences = (first_difference(here.get(key), there.get(key), f"{path}.{key}".lstrip(".")) for key in here | there)
    return next(filter(None, differences), "")


def is_longer(here: dict[str, Any], there: dict[str, Any]) -> bool:
    """Whether a run is another one with more steps, and with nothing else changed."""
    own, other = (facts["parameters"].get("optimisation", {}) for facts in (here, there))
    same = there["parameters"] | {"optimisation": other | {"steps": own.get("steps")}}
    return bool(own) and here == there | {"parameters": same} and own["steps"] > other["steps"]


class Checkpoints:
    """The states of one run, or of one process of it.

    As soon as this object exists, SIGINT and SIGTERM no longer end the run: their number is noted in `signal`, for the
    run to write a state and stop. After `finished` they do what they did before.
    """

    def __init__(self, run: Run[Any]) -> None:
        self.run, self.rank = run, training.distributed.rank()
        self.facts = training.distributed.broadcast(facts_of(run))  # their GPUs may differ
        key = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = FOLDER / run.name / key
        self.prefix = f"process{self.rank}-" if self.rank else ""
        self.signal = 0  # the number of the signal that asks to stop
        self._saved = time.monotonic()
        if not self.rank:
            self._look_at_others()
        old = [] if run.resume else [*self._paths(), self.folder / "finished"]
        for path in [*self.folder.glob(f".{self.prefix or '[!p]'}*.tmp"), *old]:
            path.unlink(missing_ok=True)
        self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}  # those before

    def _look_at_others(self) -> None:
        """Name other unfinished runs of this stage that have left states, and remove states older than a week."""
        for file in sorted((FOLDER / self.run.name).glob("*/facts.json")):
            if file.parent != self.folder:
                try:
                    self._look_at(file)
                except FileNotFoundError:  # another run is at work there, and removes its older states
                    continue
                except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                    self._say(f"{file} cannot be read; python -m tools.check --clean removes it")

    def _look_at(self, file: Path) -> None:
        """file: the facts of another run."""
        states, remedy = list(file.parent.glob("*.safetensors")), "python -m tools.check --clean removes them"
        if time.time() - max(path.stat().st_mtime for path in [file, *states]) > WEEK:
            self._say(f"the checkpoints in {file.parent} are older than a week, and removed")
            shutil.rmtree(file.parent, ignore_errors=True)
        elif states:
            there = json.loads(file.read_text("utf-8"))
            about = f"{file.parent} ({first_difference(self.facts, there).removeprefix('parameters.')})"
            if not (file.parent / "finished").exists():
                self._say(f"an unfinished run has left checkpoints in {about}; {remedy}")
            elif is_longer(self.facts, there):
                why = "whose learning rate has fallen to its end: this one starts anew"
                self._say(f"it cannot go on from the finished run in {about}, {why}")

    def due(self) -> bool:
        """Whether `save_every` seconds have passed since the last state."""
        return time.monotonic() - self._saved >= self.run.save_every

    def save(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Write a state, and remove all but the last STATES of them. On a full disk, warn, and go on without it.

        number: of steps or samples so far, by which states are ordered.
        """
        try:
            if not self.rank and not (self.folder / "facts.json").exists():
                artifacts.write_atomic(self.folder / "facts.json", json.dumps(self.facts).encode())
            path = self.folder / f"{self.prefix}{number:09d}.safetensors"
            artifacts.save(path, "state", tensors, {"stage": self.run.name})
            for old in self._paths()[:-STATES]:
                old.unlink(missing_ok=True)
        except OSError as error:
            warn(self.run.name, f"no checkpoint could be written to {self.folder} ({error.strerror}); free space there")
        self._saved = time.monotonic()

    def latest(self) -> dict[str, Tensor] | None:
        """The last intact state, or None. A corrupt one is renamed, with a warning, and the one before it is taken."""
        for path in reversed(self._paths()):
            try:
                state = artifacts.load(path, "state")
            except (InputError, OSError):
                warn(self.run.name, f"{path} is corrupt, and left out")
                path.replace(path.with_suffix(".corrupt"))
                continue
            self._say(f"resuming from {path}")
            self.run.notes["resumed_at"] = int(path.stem.removeprefix(self.prefix))
            return state.tensors
        return None

    def interrupted(self, number: int) -> Interrupted:
        """The exception to raise after the signal of this number."""
        paths, remedy = self._paths(), "run the same command again, or dvc repro, to resume from"
        how = f"{remedy} {paths[-1]}" if paths else "no checkpoint was written"
        return Interrupted(f"interrupted; {how}", 128 + number)

    def finished(self) -> None:
        """Mark the run as finished, once its last state is written: from now on a signal ends it at once."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        with suppress(OSError):  # on a full disk the run goes on without the mark
            if not self.rank:
                artifacts.write_atomic(self.folder / "finished", b"")

    def _say(self, message: str) -> None:
        print(f"{self.run.name}: {message}", file=sys.stderr)

    def _note(self, number: int, frame: object) -> None:
        self.signal = number

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.prefix}[0-9]*.safetensors"))


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, which is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_of_code(root: Path, *others: Path) -> dict[str, str]:
    """The digest of each file of code in a checkout's folders ldm and stages, and in other folders of it."""
    files = sorted(path for folder in (root / "ldm", root / "stages", *others) for path in folder.rglob("*.py*"))
    return {str(path.relative_to(root)): digest_of(path) for path in files if path.suffix in (".py", ".pyi")}


def write_log(run: Run[Any], started: float, precision: str) -> None:
    """Write the log of a run that began at `started`, of time.monotonic.

    The digests of the outputs tell whether a file is the one that this run wrote.
    """
    name = f"{run.name}-{run.out.name}" if run.out else run.name
    about: dict[str, Any] = {"stage": run.name, "ended": datetime.now(UTC).isoformat(timespec="seconds")}
    about |= {"seconds": round(time.monotonic() - started, 1)}
    about |= {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}  # Linux counts in KiB
    about |= {"gpu_peak_mib": torch.cuda.max_memory_allocated(run.device) // 2**20} if run.device_type == "cuda" else {}
    about |= {"device": device_kind(run.device), "precision": precision, "threads": torch.get_num_threads()}
    about |= {"processes": COUNT, "python": platform.python_version(), "torch": torch.__version__} | run.notes
    about["outputs"] = {path.name: digest_of(path) for path in run.outputs.values() if path.exists()}
    try:
        artifacts.write_atomic(run.recipe / LOGS / f"{name}.json", json.dumps(about, indent=1).encode())
    except OSError as error:  # the stage has done its work
        warn(run.name, f"no log could be kept in {run.recipe / LOGS} ({error.strerror}); free space there")
