"""A stage in several processes: `--processes N` hands it over to torchrun, under which each process joins the others."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from ldm.errors import InputError

if TYPE_CHECKING:
    from stages.cli import Job

NUMBER = int(os.environ.get("RANK", "0"))  # torchrun's number of this process
STARTED = int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(job: Job[Any], processes: int) -> NoReturn:
    """Become torchrun with that many processes of this command on this machine. Raises: InputError."""
    from ldm.parallel import check_divides

    if hasattr(job.config, "optimisation"):
        check_divides(job.config.optimisation.batch_size, processes)
    if job.device.startswith("cuda"):
        _check_gpus(job.device, processes)
    job.load_all()  # what is missing or corrupt is said once, before there are several to say it
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    os.execv(sys.executable, [*torchrun, "--module", f"stages.{job.name}", *sys.argv[1:]])


def join(device: str) -> str:
    """Join the other processes; returns the device of this one, of which each has its own."""
    import torch
    import torch.distributed as dist

    if not device.startswith("cuda"):
        dist.init_process_group("gloo")
        return device
    _check_gpus(device, int(os.environ["LOCAL_WORLD_SIZE"]))
    own = f"cuda:{os.environ['LOCAL_RANK']}"
    torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl")
    return own


def _check_gpus(device: str, processes: int) -> None:
    import torch

    if ":" in device:
        raise InputError(f"--device {device}: {processes} processes take a GPU each; write --device cuda")
    if processes > torch.cuda.device_count():
        raise InputError(f"{processes} processes: this machine has {torch.cuda.device_count()} usable GPUs; start at most so many, or choose --device cpu")


def leave() -> None:
    """Leave the other processes; all but the first end here, since it alone writes."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        if NUMBER:
            sys.exit(0)
