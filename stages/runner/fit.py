"""Run the training of a stage: progress, the training curve, checkpoints, and what happens when it diverges."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from ldm import InputError, artifacts, training
from ldm.lazy import Module, Tensor, torch
from stages.runner.checkpoints import FOLDER, Checkpoints
from stages.runner.processes import RANK, leave
from stages.runner.progress import bar
from stages.runner.run import Run, warn

N = TypeVar("N", bound="Module")
Kept = dict[str, Tensor] | None
POINTS = 8  # validations along a training curve, about
TELL_AFTER = 30.0  # seconds, after which the time left is said once, in a line
POLL_EVERY = 10  # steps after which the processes tell each other whether a signal asks them to stop


def fit(
    run: Run[Any], trainer: training.loop.Training, validate: Callable[[N], float], keep_at: int = 0, kept: Kept = None
) -> N:
    """Train to the end behind a bar with loss, images/s and time left.

    validate: from the averaged network to its loss on the validation images. kept: receives the weights of the averaged
    network at step `keep_at`, a multiple of record_every; 0 for none.

    Returns the averaged network. The end is at a number of steps, or with `run.until` at a time. Checkpoints are
    written at intervals; where an earlier run has left one, training goes on from it. history.json is written at each
    record, to be watched: one row per record, with the validation loss in about POINTS of them and null in the others.
    Under torchrun the first process returns, and the others end. Raises: Diverged, after the last good network was
    written beside the checkpoints; Interrupted; InputError where the time is up before step `keep_at`.
    """
    settings, distributed = trainer.settings, training.distributed
    kept = {} if kept is None else kept
    every = max(settings.steps // (POINTS * settings.record_every), 1)
    checkpoints = Checkpoints(run)
    if not RANK:
        run.set_aside()
    curve: list[dict[str, Any]] = []
    before = 0.0  # seconds of training in interrupted runs
    state = distributed.broadcast(None if RANK else checkpoints.latest())
    if state is not None:
        trainer.load_state(state)
        curve = json.loads(state["history"].numpy().tobytes())
        kept.update({key.removeprefix("kept."): x for key, x in state.items() if key.startswith("kept.")})
        before = state["seconds"].item()
    first, started, told, skipped = trainer.step, time.monotonic(), False, 0
    points = sum(row["validation_loss"] is not None for row in curve)

    def share(step: int) -> float:
        """How much of the training is over after a step."""
        if not run.until:
            return step / settings.steps
        seconds = before + time.monotonic() - started
        return distributed.all_reduce_max(round(1000 * seconds)) / 1000 / run.until

    over, total = share(trainer.step), None if run.until else settings.steps * settings.batch_size
    with bar(total, "img", run.name, trainer.step * settings.batch_size) as progress:
        while over < 1:
            over = share(trainer.step + 1)
            try:
                record = trainer.advance(over if run.until else None)
            except training.loop.Diverged as error:
                raise _with_last_good(run, error) from None
            passed = time.monotonic() - started
            if passed > TELL_AFTER and not told and not RANK and not run.until:
                told = True
                left = progress.format_interval(passed * (settings.steps - trainer.step) / (trainer.step - first))
                progress.write(f"{run.name}: about {left} to go, for {settings.steps} steps in all")
            if record is not None:
                if record.step == keep_at:
                    kept.update({name: tensor.clone() for name, tensor in record.averaged.state_dict().items()})
                due = over * POINTS >= points + 1 if run.until else len(curve) % every == every - 1
                checked = not RANK and (due or over >= 1)
                points += checked
                validated = validate(cast(N, record.averaged)) if checked else None
                curve.append({"step": record.step, "loss": _finite(record.loss), "validation_loss": _finite(validated)})
                _show(run, curve)
                skipped = record.skipped
                progress.set_postfix(loss=f"{record.loss:.4f}", skipped=skipped, refresh=False)
                progress.update(record.step * settings.batch_size - progress.n)
            poll = trainer.step % POLL_EVERY == 0 or distributed.world_size() == 1
            stop = distributed.all_reduce_max(checkpoints.signal) if poll else 0
            if not RANK and (stop or checkpoints.due() or over >= 1):
                history = torch.frombuffer(bytearray(json.dumps(curve).encode()), dtype=torch.uint8)
                seconds = torch.tensor(before + time.monotonic() - started, dtype=torch.float64)
                own = {"history": history, "seconds": seconds} | {f"kept.{key}": x for key, x in kept.items()}
                checkpoints.save(trainer.step, trainer.state() | own)
            if stop:
                raise SystemExit(128 + stop) if RANK else checkpoints.interrupted(stop)
    checkpoints.finished()
    leave()
    if skipped and not RANK:
        warn(run.name, f"{skipped} of {trainer.step} steps had a non-finite loss or gradient, and changed nothing")
    run.write_json("history.json", curve)  # where all of the run was resumed too
    if run.until:
        run.facts["steps_taken"] = trainer.step
    if keep_at and not kept:
        raise InputError(f"the time was up after {trainer.step} steps, before guide_step {keep_at}; give it more")
    return cast(N, trainer.averaged)


def _show(run: Run[Any], curve: list[dict[str, Any]]) -> None:
    """Bring history.json up to date for those who watch it; the run can go on without."""
    try:
        if not RANK:
            run.write_json("history.json", curve)
    except OSError as error:
        warn(run.name, f"history.json is not up to date ({error.strerror}); free space for the end of the run")


def _finite(loss: float | None) -> float | None:
    """JSON has no NaN, which the loss is where every step was skipped."""
    return loss if loss is not None and math.isfinite(loss) else None


def _with_last_good(run: Run[Any], error: training.loop.Diverged) -> training.loop.Diverged:
    """Keep the averaged network of a run that diverged, and say where."""
    path = FOLDER / run.name / "last_good.safetensors"
    if RANK:
        raise SystemExit(2)  # all processes diverge as one
    artifacts.save(path, "weights", error.averaged.state_dict(), {})
    return training.loop.Diverged(f"{error}; the last good weights are in {path}", error.averaged)
