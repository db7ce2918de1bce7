"""One run in several processes, which torchrun starts: each computes its slice of every batch (torch.distributed).

All processes draw the same order and the same noise for the whole batch, and each keeps its slice, so that k processes
compute the same run as one, to rounding. Without torchrun there is one process.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ldm.errors import InputError

T = TypeVar("T")


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 is the one that reads states and writes artifacts."""
    return dist.get_rank() if dist.is_initialized() else 0


def check_divides(batch_size: int, processes: int) -> None:
    """Check the size of a batch. Raises: InputError unless the processes can have equal slices of it."""
    if batch_size % processes:
        remedy = f"use a multiple of {processes}"
        raise InputError(f"batch_size {batch_size} is not divisible by {processes} processes; {remedy}")


def local_slice(batch_size: int) -> slice:
    """The slice of a batch that this process computes. Raises: InputError where the slices would not be equal."""
    check_divides(batch_size, world_size())
    size = batch_size // world_size()
    return slice(rank() * size, (rank() + 1) * size)


def local_items(items: Sequence[T]) -> Sequence[T]:
    """This process's consecutive items of a list; the first processes have the longer runs."""
    start, end = (-(-len(items) * number // world_size()) for number in (rank(), rank() + 1))
    return items[start:end]


def check_draws_nothing(network: nn.Module) -> None:
    """Check a network for dropout. Raises: InputError where it has some, and runs in several processes."""
    for name, module in network.named_modules() if world_size() > 1 else ():
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise InputError(f"dropout {module.p:g} ({name}) differs between processes; set it to 0 or use one process")


def average_gradients(network: nn.Module) -> None:
    """Give every process the mean of all processes' gradients, in place; their slices of the batch are equal."""
    if world_size() == 1:
        return
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    mean = all_reduce_mean(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean over all processes."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


def all_reduce_max(x: int) -> int:
    """The maximum over all processes of one whole number, sent over the CPU."""
    number = torch.tensor(x)
    if world_size() > 1:
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def broadcast(x: Any) -> Any:
    """Give every process the first one's x, which may be any object."""
    box = [x]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def gather(x: Tensor) -> list[Tensor]:
    """The tensors x of all processes, in their order, for the first process; for the others an empty list."""
    if world_size() == 1:
        return [x]
    tensors: list[Any] = [None] * world_size()
    dist.gather_object(x, tensors if rank() == 0 else None)
    return tensors if rank() == 0 else []
