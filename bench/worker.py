"""One side in a process of its own, so that its memory is its own: requests come in as lines of JSON, measurements go out."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.sides import SIDES


def timed(device: str, seconds: float, images: int, work: Callable[[], Any]) -> float:
    """Images a second: repeat the work for some seconds, at least once, with the device idle at both ends."""

    def idle() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    idle()
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < seconds:
        work()
        idle()
        count += 1
    return count * images / (time.perf_counter() - start)


def memory(device: str) -> float:
    """The most this process has used, in MiB: of the GPU's memory, or of the machine's."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def matrix_peak(device: str, precision: str) -> float:
    """TFLOP/s of a large matrix product."""
    n = 8192 if device.startswith("cuda") else 2048
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = False
    timed(device, 0.2, 1, lambda: a @ a)
    return timed(device, 1.0, 1, lambda: a @ a) * 2 * n**3 / 1e12


def main(name: str, peer: str, precision: str, device: str, batch_size: int) -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints goes elsewhere
    side = SIDES[name](peer, precision, device, batch_size) if name in SIDES else None
    for line in sys.stdin:
        request = json.loads(line)
        what, seconds = request["what"], request["seconds"]
        if what == "peak":
            answer = {"value": matrix_peak(device, precision)}
        elif what == "train":
            chunk = 10  # steps between two looks at the clock, which must not wait for the device each step
            value = timed(device, seconds, chunk * batch_size, lambda: [side.step() for _ in range(chunk)])
            answer = {"value": value, "memory": memory(device)}
        else:
            n, evaluations = request["n"], request["evaluations"]
            value = timed(device, seconds, n, lambda: side.images(what, n, evaluations))
            answer = {"value": value, "memory": memory(device)}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
