"""A stage in several processes: `--processes N` hands it over to torchrun, under which each process joins the others."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from ldm.errors import InputError

NUMBER = int(os.environ.get("RANK", "0"))  # torchrun's number of this process
STARTED = int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(name: str, config: Any, processes: int, device: str) -> NoReturn:
    """Become torchrun with that many processes of this command on this machine. Raises: InputError."""
    from ldm.parallel import check_divides

    if hasattr(config, "optimisation"):
        check_divides(config.optimisation.batch_size, processes)
    if device.startswith("cuda"):
        import torch

        if processes > torch.cuda.device_count():
            raise InputError(f"--processes {processes}: this machine has {torch.cuda.device_count()} usable GPUs; choose at most so many, or --device cpu")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    os.execv(sys.executable, [*torchrun, "--module", f"stages.{name}", *sys.argv[1:]])


def join(device: str) -> str:
    """Join the other processes; returns the device of this one, of which each has its own."""
    import torch
    import torch.distributed as dist

    if not device.startswith("cuda"):
        dist.init_process_group("gloo")
        return device
    own = f"cuda:{os.environ['LOCAL_RANK']}"
    torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl")
    return own


def leave() -> None:
    """Leave the other processes; all but the first end here, since it alone writes."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        if NUMBER:
            sys.exit(0)
