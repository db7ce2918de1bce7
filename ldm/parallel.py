"""One run in several processes, which torchrun starts: each computes its share of every batch (torch.distributed).

All processes draw the same order and the same noise for the whole batch, and each keeps its share, so
that k processes compute the same run as one, to rounding. Without torchrun there is one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldm.errors import InputError

T = TypeVar("T")


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 is the one that reads states and writes artifacts."""
    return dist.get_rank() if dist.is_initialized() else 0


def check_divides(batch_size: int, processes: int) -> None:
    """Raises: InputError unless the processes can have equal shares of a batch."""
    if batch_size % processes:
        raise InputError(f"batch_size {batch_size} is not divisible by {processes} processes; choose a multiple of {processes}")


def share(batch_size: int) -> slice:
    """This process's part of a batch. Raises: InputError where the parts would not be equal."""
    check_divides(batch_size, world())
    size = batch_size // world()
    return slice(rank() * size, (rank() + 1) * size)


def part(items: Sequence[T]) -> Sequence[T]:
    """This process's part of a list, in order; the first processes have the longer ones."""
    start, end = (-(-len(items) * number // world()) for number in (rank(), rank() + 1))
    return items[start:end]


def objective(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The loss of a batch, whose gradients are the means over all processes (DistributedDataParallel).

    Raises: InputError where the network draws random numbers of its own.
    """
    if world() == 1:
        return loss
    for name, module in network.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise InputError(f"dropout {module.p:g} ({name}) would differ between processes; set it to 0, or train in one process")
    # looking for unused parameters keeps the gradients where they are in the buckets, so that a resumed run adds in the same order
    return DistributedDataParallel(_Objective(network, loss), gradient_as_bucket_view=True, find_unused_parameters=True)


class _Objective(nn.Module):
    """Whatever of the network the loss calls, it is the forward pass of one module."""

    def __init__(self, network: nn.Module, loss: Callable[[], Tensor]) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self) -> Tensor:
        return self.loss()


def mean(x: Tensor) -> Tensor:
    """The mean over all processes."""
    if world() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world()


def largest(x: int) -> int:
    """The largest of all processes' numbers; a word over the network, on the CPU."""
    if world() == 1:
        return x
    number = torch.tensor(x)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def from_first(x: Any) -> Any:
    """What the first process has."""
    if world() == 1:
        return x
    box = [x]
    dist.broadcast_object_list(box)
    return box[0]


def gather(x: Tensor) -> list[Tensor]:
    """What every process has, in the first one; in the others nothing."""
    if world() == 1:
        return [x]
    parts: list[Any] = [None] * world()
    dist.gather_object(x, parts if rank() == 0 else None)
    return parts if rank() == 0 else []
