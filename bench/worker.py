"""One side in a process of its own, so that its memory can be measured apart.

Requests come in as lines of JSON, and measurements go out.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.sides import SIDES, Side

CHUNK = 10  # training steps between two looks at the clock, so that no step waits for the device


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
    timed(device, 0.2, 1, lambda: a @ a)
    return timed(device, 1.0, 1, lambda: a @ a) * 2 * n**3 / 1e12


def main(name: str, peer: str, precision: str, device: str, batch_size: int) -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints goes elsewhere
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 is that of IEEE 754
    side = SIDES[name](peer, precision, device, batch_size) if name in SIDES else None
    for line in sys.stdin:
        print(json.dumps(answer(side, device, precision, **json.loads(line))), file=out, flush=True)


def answer(
    side: Side | None, device: str, precision: str, *, what: str, seconds: float, n: int = 0, evaluations: int = 0
) -> dict[str, float]:
    """What a request asks for: the matrix peak, training images a second, or images drawn a second by a sampler."""
    if side is None:
        return {"value": matrix_peak(device, precision)}

    def train() -> None:
        for _ in range(CHUNK):
            side.step()

    if what == "train":
        value = timed(device, seconds, CHUNK * side.batch_size, train)
    else:
        value = timed(device, seconds, n, lambda: side.images(what, n, evaluations))
    return {"value": value, "memory": memory(device)}


if __name__ == "__main__":
    name, peer, precision, device, batch_size = sys.argv[1:]
    main(name, peer, precision, device, int(batch_size))
