"""Running a training from a stage: progress, the training curve, and what happens when it diverges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from stages.progress import bar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ldm.optimisation import Optimisation
    from ldm.training import Record
    from stages.cli import Job

N = TypeVar("N", bound="nn.Module")
POINTS = 8  # validations along a training curve, about
SCRATCH = Path("scratch")  # ignored by git and DVC


def fit(job: Job[Any], network: N, loss: Callable[[], Tensor], validate: Callable[[N], float], on_record: Callable[[Record], None] = lambda record: None) -> N:
    """Train to the end behind a bar with loss, images/s and time left, and write history.json.

    Returns the averaged network. history.json has one row a record, with the validation loss of
    the averaged network in about POINTS of them and null in the others. Raises: Diverged, after the last good network
    was kept in the scratch folder.
    """
    from ldm.artifacts import write_weights
    from ldm.training import Diverged, train

    settings: Optimisation = job.config.optimisation
    every = max(settings.steps // (POINTS * settings.record_every), 1)
    curve: list[dict[str, Any]] = []
    with bar(settings.steps * settings.batch_size, "img", job.name) as progress:
        try:
            for count, record in enumerate(train(network, loss, settings), 1):
                on_record(record)
                checked = count % every == 0 or record.step == settings.steps
                validation = validate(cast(N, record.averaged)) if checked else None
                curve.append({"step": record.step, "loss": record.loss, "validation_loss": validation})
                progress.set_postfix(loss=f"{record.loss:.4f}", skipped=record.skipped, refresh=False)
                progress.update(record.step * settings.batch_size - progress.n)
        except Diverged as error:
            kept = SCRATCH / job.name / "last_good.safetensors"
            write_weights(kept, error.averaged)
            raise Diverged(f"{error}; the last good weights are in {kept}", error.averaged) from None
    job.write("history.json", json.dumps(curve, indent=1).encode())
    return cast(N, record.averaged)
