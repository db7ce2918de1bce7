"""A stage in several processes: `--processes N` hands it to torchrun, under which each process joins the others."""

import os
import sys
from typing import Any, NoReturn

import threadpoolctl

from ldm import InputError, training
from ldm.lazy import torch
from stages.runner.run import Run

# RANK and WORLD_SIZE are also set by schedulers of clusters; torchrun alone sets its run's name
TORCHRUN = "TORCHELASTIC_RUN_ID" in os.environ
RANK = int(os.environ["RANK"]) if TORCHRUN else 0  # torchrun's number of this process
COUNT = int(os.environ["WORLD_SIZE"]) if TORCHRUN else 1


def launch(run: Run[Any], processes: int) -> NoReturn:
    """Replace this process by torchrun, which runs the same command in that many processes. Raises: InputError."""
    if hasattr(run.config, "optimisation"):
        training.distributed.check_divides(run.config.optimisation.batch_size, processes)
    if run.device_type == "cuda":
        _check_gpus(run.device, processes)
    run.load_all()  # what is missing or corrupt is said once, before there are several to say it
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    spec = sys.modules["__main__"].__spec__
    torchrun += ["--nproc-per-node", str(processes), "--module", spec.name if spec else f"stages.{run.name}"]
    os.execv(sys.executable, torchrun + sys.argv[1:])


def usable_cores() -> int:
    """The cores that this process may use: those of its affinity, or fewer where its control group has a quota."""
    from joblib import cpu_count  # a slow import, for which --help should not wait

    return cpu_count()


def limit_threads() -> None:
    """Let no library use more threads than there are cores for it, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = usable_cores()
    torch.set_num_threads(min(cores, torch.get_num_threads()))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(cores))  # for SciPy's, which is loaded later than NumPy's
    for library in threadpoolctl.ThreadpoolController().lib_controllers:
        if library.num_threads > cores:
            library.set_num_threads(cores)


def join(device: str) -> str:
    """Join the other processes. Returns the device of this one: the CPU, or a GPU that no other process has."""
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        for library in ("GLOO", "NCCL"):  # one machine needs no more than loopback, and its name may not resolve
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    if not device.startswith("cuda"):
        torch.distributed.init_process_group("gloo")
        return device
    _check_gpus(device, int(os.environ["LOCAL_WORLD_SIZE"]))
    own = f"cuda:{os.environ['LOCAL_RANK']}"
    torch.cuda.set_device(own)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl")
    return own


def leave() -> None:
    """Leave the other processes; all but the first end here, since it alone writes."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        if RANK:
            sys.exit(0)


def _check_gpus(device: str, processes: int) -> None:
    if ":" in device:
        raise InputError(f"--device {device}: {processes} processes take a GPU each; write --device cuda")
    if processes > (count := torch.cuda.device_count()):
        raise InputError(f"{processes} processes: there are {count} usable GPUs; start fewer, or choose --device cpu")
