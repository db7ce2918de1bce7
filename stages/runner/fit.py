"""Run the training of a stage: progress, the training curve, checkpoints, and what happens when it diverges."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from ldm import artifacts, training
from ldm.lazy import Module, Tensor, torch
from stages.runner.checkpoints import FOLDER, Checkpoints
from stages.runner.processes import RANK, leave
from stages.runner.progress import bar
from stages.runner.run import Run

N = TypeVar("N", bound="Module")
POINTS = 8  # validations along a training curve, about
TELL_AFTER = 30.0  # seconds, after which the time left is said once, in a line
POLL_EVERY = 10  # steps after which the processes tell each other whether a signal asks them to stop


def fit(
    run: Run[Any],
    trainer: training.loop.Training,
    validate: Callable[[N], float],
    keep_at: int | None = None,
    kept: dict[str, Tensor] | None = None,
) -> N:
    """Train to the end behind a bar with loss, images/s and time left, and write history.json.

    validate: from the averaged network to its loss on the validation images. kept: receives the weights of the averaged
    network at step `keep_at`, a multiple of record_every.

    Returns the averaged network. Checkpoints are written at intervals; where an earlier run has left one, training
    goes on from it. history.json has one row per record, with the validation loss in about POINTS of them and null in
    the others. Under torchrun the first process returns, and the others end. Raises: Diverged, after the last good
    network was written beside the checkpoints; Interrupted.
    """
    settings, distributed = trainer.settings, training.distributed
    kept = {} if kept is None else kept
    every = max(settings.steps // (POINTS * settings.record_every), 1)
    checkpoints = Checkpoints(run)
    curve: list[dict[str, Any]] = []
    state = distributed.broadcast(None if RANK else checkpoints.latest())
    if state is not None:
        trainer.load_state(state)
        curve = json.loads(state["history"].numpy().tobytes())
        kept.update({key.removeprefix("kept."): x for key, x in state.items() if key.startswith("kept.")})
    first, started, told = trainer.step, time.monotonic(), False
    with bar(settings.steps * settings.batch_size, "img", run.name, trainer.step * settings.batch_size) as progress:
        while trainer.step < settings.steps:
            try:
                record = trainer.advance()
            except training.loop.Diverged as error:
                raise _with_last_good(run, error) from None
            passed = time.monotonic() - started
            if passed > TELL_AFTER and not told and not RANK:
                told = True
                left = passed * (settings.steps - trainer.step) / (trainer.step - first)
                said = (
                    f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min" if left < 6000 else f"{left / 3600:.1f} h"
                )
                progress.write(f"{run.name}: about {said} to go, for {settings.steps} steps in all")
            if record is not None:
                if record.step == keep_at:
                    kept.update({name: tensor.clone() for name, tensor in record.averaged.state_dict().items()})
                checked = not RANK and (len(curve) % every == every - 1 or record.step == settings.steps)
                validation = validate(cast(N, record.averaged)) if checked else None
                losses = {"loss": record.loss, "validation_loss": validation}
                curve.append({"step": record.step} | {name: _finite(loss) for name, loss in losses.items()})
                progress.set_postfix(loss=f"{record.loss:.4f}", skipped=record.skipped, refresh=False)
                progress.update(record.step * settings.batch_size - progress.n)
            poll = trainer.step % POLL_EVERY == 0 or distributed.world_size() == 1
            stop = distributed.all_reduce_max(checkpoints.signal) if poll else 0
            if not RANK and (stop or checkpoints.due() or trainer.step == settings.steps):
                history = torch.frombuffer(bytearray(json.dumps(curve).encode()), dtype=torch.uint8)
                own = {"history": history} | {f"kept.{key}": tensor for key, tensor in kept.items()}
                checkpoints.save(trainer.step, trainer.state() | own)
            if stop:
                raise SystemExit(128 + stop) if RANK else checkpoints.interrupted(stop)
    checkpoints.finished()
    leave()
    run.write_json("history.json", curve)
    return cast(N, trainer.averaged)


def _finite(loss: float | None) -> float | None:
    """JSON has no NaN, which the loss is where every step was skipped."""
    return loss if loss is not None and math.isfinite(loss) else None


def _with_last_good(run: Run[Any], error: training.loop.Diverged) -> training.loop.Diverged:
    """Keep the averaged network of a run that diverged, and say where."""
    path = FOLDER / run.name / "last_good.safetensors"
    if RANK:
        raise SystemExit(2)  # all processes diverge as one
    artifacts.write_weights(path, error.averaged)
    return training.loop.Diverged(f"{error}; the last good weights are in {path}", error.averaged)
