"""The log of a stage's last run: how long it took, how much memory, on what. Git and DVC ignore it; `report` shows it.

It lies in artifacts/logs of the pipeline or recipe; a run by hand with --out leaves none.
"""

import json
import platform
import resource
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ldm import artifacts
from ldm.lazy import torch
from stages.runner.checkpoints import device_kind, digest_of
from stages.runner.processes import COUNT
from stages.runner.run import Run, warn

LOGS = Path("artifacts/logs")  # below the folder of dvc.yaml


def write_log(run: Run[Any], started: float, precision: str) -> None:
    """started: of time.monotonic. The digests of the outputs tell whether a file is the one that this run wrote."""
    about: dict[str, Any] = {"stage": run.name, "ended": datetime.now(UTC).isoformat(timespec="seconds")}
    about |= {"seconds": round(time.monotonic() - started, 1)}
    about |= {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}  # Linux counts in KiB
    about |= {"gpu_peak_mib": torch.cuda.max_memory_allocated(run.device) // 2**20} if run.device_type == "cuda" else {}
    about |= {"device": device_kind(run.device), "precision": precision, "threads": torch.get_num_threads()}
    about |= {"processes": COUNT, "python": platform.python_version(), "torch": torch.__version__} | run.notes
    about["outputs"] = {path.name: digest_of(path) for path in run.outputs.values() if path.exists()}
    try:
        artifacts.write_atomic(run.recipe / LOGS / f"{run.name}.json", json.dumps(about, indent=1).encode())
    except OSError as error:  # the stage has done its work
        warn(run.name, f"no log could be kept in {run.recipe / LOGS} ({error.strerror}); free space there")
