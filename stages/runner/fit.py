"""Running a training from a stage: progress, the training curve, its states, and what happens when it diverges."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from stages.launch import NUMBER, leave
from stages.progress import bar
from stages.scratch import KEPT, MIB, SCRATCH, check_space, open_scratch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ldm.training import Diverged, Record, Training
    from stages.cli import Job

N = TypeVar("N", bound="nn.Module")
POINTS = 8  # validations along a training curve, about
LISTEN = 10  # steps between two questions to the other processes, whether a signal asks to stop
ACTIVATIONS = 5000  # bytes of memory that an element of the input takes in a training of networks of this size, about


def fit(
    job: Job[Any],
    training: Training,
    sample_size: int,
    validate: Callable[[N], float],
    on_record: Callable[[Record], None] = lambda record: None,
    kept: dict[str, Tensor] | None = None,
) -> N:
    """Train to the end behind a bar with loss, images/s and time left, and write history.json.

    Returns the averaged network. The run's state is kept at intervals, and taken up again where there
    is one; `kept` is what `on_record` fills, and a part of it. sample_size: elements of a sample, for an
    estimate of the memory. history.json has one row a record, with the validation loss of the averaged
    network in about POINTS of them and null in the others. Under torchrun the first process returns,
    and the others end. Raises: Diverged, after the last good network was kept in the scratch folder;
    Interrupted.
    """
    from ldm import parallel
    from ldm.training import Diverged

    settings = training.settings
    kept = {} if kept is None else kept
    every = max(settings.steps // (POINTS * settings.record_every), 1)
    first = parallel.rank() == 0
    check_room(job, training.network, settings.batch_size * sample_size)
    scratch = open_scratch(job)
    curve: list[dict[str, Any]] = []
    state = parallel.from_first(scratch.latest() if first else None)
    if state is not None:
        training.restore(state)
        curve = json.loads(state["history"].numpy().tobytes())
        kept.update({name.removeprefix("kept."): tensor for name, tensor in state.items() if name.startswith("kept.")})
    with bar(settings.steps * settings.batch_size, "img", job.name, training.step * settings.batch_size) as progress:
        while training.step < settings.steps:
            try:
                record = training.advance()
            except Diverged as error:
                raise keep_last_good(job, error) from None
            if record is not None:
                on_record(record)
                checked = first and (len(curve) % every == every - 1 or record.step == settings.steps)
                validation = validate(cast(N, record.averaged)) if checked else None
                curve.append({"step": record.step, "loss": record.loss, "validation_loss": validation})
                progress.set_postfix(loss=f"{record.loss:.4f}", skipped=record.skipped, refresh=False)
                progress.update(record.step * settings.batch_size - progress.n)
            stop = parallel.largest(scratch.signal) if training.step % LISTEN == 0 or parallel.world() == 1 else 0
            if first and (stop or scratch.due() or training.step == settings.steps):
                scratch.save(training.step, training.state() | {"history": _as_tensor(curve)} | {f"kept.{k}": v for k, v in kept.items()})
            if stop:
                raise scratch.interrupted(stop) if first else SystemExit(128 + stop)
    scratch.finished()
    leave()
    job.write("history.json", json.dumps(curve, indent=1).encode())
    return cast(N, training.averaged.module)


def check_room(job: Job[Any], network: nn.Module, elements: int) -> None:
    """Raises: InputError unless there is room for a training's states; warns where batches of so many elements may be too large."""
    from ldm.parallel import world

    size = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    state = 4 * size + MIB  # weights, their average, two moments; a guide of the same size may be among them
    activations = elements * ACTIVATIONS // world() if job.device == "cpu" else 0
    check_space(job.name, SCRATCH, 2 * (KEPT + 1) * state, 3 * state, activations)


def keep_last_good(job: Job[Any], error: Diverged) -> Diverged:
    """Keep the averaged network of a run that diverged, and say where."""
    from ldm.artifacts import write_weights
    from ldm.training import Diverged

    path = SCRATCH / job.name / "last_good.safetensors"
    if NUMBER:
        raise SystemExit(2)  # all processes diverge as one
    write_weights(path, error.averaged)
    return Diverged(f"{error}; the last good weights are in {path}", error.averaged)


def _as_tensor(values: Any) -> Tensor:
    """JSON as bytes, (n,)."""
    import torch

    return torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)
