"""A training as a stage runs it: the curve can be watched, and the end can be at a time."""

import json
import math
import os
import signal
import time
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from test_checkpoints import Trained
from torch import nn

from ldm.errors import InputError, Interrupted
from ldm.training.loop import Batches, Training
from ldm.training.settings import Optimisation
from stages import decode, train_classifier, train_vae
from stages.runner import Run, fit
from stages.runner.command import seconds_of

SETTINGS = {"steps": 100, "batch_size": 4, "lr": 0.1, "lr_final": 0.01, "warmup": 5, "record_every": 10}


@pytest.fixture
def clock(monkeypatch):
    """Time that passes in steps of the training alone: `clock.now`, in seconds."""
    watch = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(monotonic=lambda: watch.now, time=time.time)
    monkeypatch.setattr(import_module("stages.runner.fit"), "time", fake)
    return watch


def run_in(folder, steps=100, **changes) -> Run:
    config = Trained(optimisation=Optimisation.parse(SETTINGS | {"steps": steps}, "optimisation"))
    outputs = {name: folder / name for name in ("history.json", "vae.safetensors")}
    return Run("stage", config, {}, outputs, "cpu", **changes)


def trainer_of(run: Run, each_step=lambda step: None) -> Training:
    """Fits a line; `each_step` is called in every step, with its number."""
    network = nn.Linear(1, 1)

    def loss(index):
        each_step(trainer.step)
        return (network(torch.ones(len(index), 1)) - 3).square().mean()

    trainer = Training(network, loss, run.config.optimisation, Batches(8, 4, torch.Generator()))
    return trainer


def rate_of(trainer: Training) -> float:
    return trainer.optimizers["adamw"].param_groups[0]["lr"].item()


def history(folder):
    return json.loads((folder / "history.json").read_text())


def test_the_curve_never_holds_nan(here):
    """JSON has none, and what reads it fails: null stands for a loss that is not finite."""
    run = run_in(here)
    fit(run, trainer_of(run), lambda network: float("nan"))
    assert "NaN" not in (here / "history.json").read_text()
    assert {row["validation_loss"] for row in history(here)} == {None}


def test_the_curve_is_written_while_the_training_runs(here):
    seen = []

    def look(step):
        if step in (11, 95):
            seen.append([row["step"] for row in history(here)])

    run = run_in(here)
    fit(run, trainer_of(run, look), lambda network: 1.0)
    assert seen == [[10], [10, 20, 30, 40, 50, 60, 70, 80, 90]]
    assert [row["step"] for row in history(here)] == list(range(10, 101, 10))
    assert list(here.glob(".*.tmp")) == []


def test_tensors_of_an_earlier_run_are_set_aside_until_the_new_ones_are_there(here, capsys):
    run = run_in(here)
    (here / "vae.safetensors").write_bytes(b"earlier")
    fit(run, trainer_of(run), lambda network: 1.0)
    assert not (here / "vae.safetensors").exists()
    assert (here / "previous.vae.safetensors").read_bytes() == b"earlier"
    assert "vae.safetensors is previous.vae.safetensors" in capsys.readouterr().err
    run.save("vae", {"weight": torch.ones(1)})
    assert sorted(path.name for path in here.glob("*.safetensors")) == ["vae.safetensors"]


def test_what_the_run_reads_itself_is_not_set_aside(here):
    """A toy makes its latents, and trains on them, in one stage."""
    run = replace(run_in(here), inputs={"vae": here / "vae.safetensors"})
    (here / "vae.safetensors").write_bytes(b"its own")
    fit(run, trainer_of(run), lambda network: 1.0)
    assert (here / "vae.safetensors").read_bytes() == b"its own"


def test_a_full_disk_costs_the_curve_that_is_watched_alone(here, monkeypatch, capsys):
    written = []

    def full(path, *data):
        written.append(path)
        if len(written) < 10:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"".join(data))

    monkeypatch.setattr("ldm.artifacts.write_atomic", full)
    run = run_in(here, save_every=1000.0)
    fit(run, trainer_of(run), lambda network: 1.0)
    assert "history.json is not up to date (No space left on device)" in capsys.readouterr().err
    assert len(history(here)) == 10


def test_an_interrupted_run_leaves_the_earlier_tensors(here):
    run = run_in(here)
    (here / "vae.safetensors").write_bytes(b"earlier")
    stop = trainer_of(run, lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 20 else None)
    with pytest.raises(Interrupted):
        fit(run, stop, lambda network: 1.0)
    assert (here / "previous.vae.safetensors").read_bytes() == b"earlier"
    fit(run, trainer_of(run), lambda network: 1.0)  # goes on; nothing is lost by the second attempt either
    assert (here / "previous.vae.safetensors").read_bytes() == b"earlier"


def test_a_run_ends_at_its_time_with_the_learning_rate_at_its_end(here, clock):
    rates = {}

    def step_of_a_tenth(step):
        rates[step] = rate_of(trainer)
        clock.now += 0.1

    run = run_in(here, until=25.0)
    trainer = trainer_of(run, step_of_a_tenth)
    fit(run, trainer, lambda network: 1.0)
    assert trainer.step == 251  # not the 100 of the settings; the last begins when the time is up
    assert run.facts == {"steps_taken": 251}
    assert rates[5] == pytest.approx(0.1)
    assert rates[126] == pytest.approx(0.1 * 0.505)  # half of the time has passed
    assert rates[251] == pytest.approx(0.001)
    points = [row["step"] for row in history(here) if row["validation_loss"] is not None]
    assert points[-1] == 251
    assert 8 <= len(points) <= 9
    assert run.save("vae", {"weight": torch.ones(1)}).config["steps_taken"] == 251


def test_the_time_of_an_interrupted_run_counts(here, clock):
    def after(stop):
        def each(step):
            clock.now += 1
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        return each

    run = run_in(here, until=50.0)
    with pytest.raises(Interrupted):
        fit(run, trainer_of(run, after(30)), lambda network: 1.0)
    clock.now += 1000  # until it is run again
    again = run_in(here, until=50.0)
    trainer = trainer_of(again, after(None))
    fit(again, trainer, lambda network: 1.0)
    assert trainer.step == 51
    assert again.notes == {"resumed_at": 30}
    finished = trainer_of(again)
    fit(again, finished, lambda network: 1.0)  # and of a finished run nothing is left to do
    assert finished.step == 51


def test_too_short_a_time_for_the_guide_is_said(here, clock):
    def slow(step):
        clock.now += 1

    run = run_in(here, until=5.0)
    with pytest.raises(InputError, match="the time was up after 6 steps, before guide_step 10"):
        fit(run, trainer_of(run, slow), lambda network: 1.0, keep_at=10, kept={})


def test_a_longer_run_says_why_it_starts_anew(here, capsys):
    run = run_in(here, steps=20)
    fit(run, trainer_of(run), lambda network: 1.0)
    assert "anew" not in capsys.readouterr().err
    longer = run_in(here, steps=40)
    trainer = trainer_of(longer)
    fit(longer, trainer, lambda network: 1.0)
    said = capsys.readouterr().err
    assert "it cannot go on from the finished run in" in said
    assert "(optimisation.steps is 20 there and 40 here), whose learning rate has fallen to its end" in said
    assert "resumed_at" not in longer.notes
    shorter = run_in(here, steps=10)
    fit(shorter, trainer_of(shorter), lambda network: 1.0)
    assert "anew" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("0.5m", 30), ("2.s", 2)]
)
def test_times(tmp_path, text, seconds):
    assert seconds_of(text, train_vae.Config, tmp_path) == seconds


@pytest.mark.parametrize("text", ["10", "0s", "0.0h", "-1m", "1d", "m", "", "1e3s", "nan", "1m30s", "10 m"])
def test_what_is_no_time_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"write a time such as 90s, 10m or 1\.5h"):
        seconds_of(text, train_classifier.Config, tmp_path)


def test_a_time_needs_a_training_by_hand(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="the section of this stage has no optimisation"):
        seconds_of("1m", decode.Config, tmp_path)
    with pytest.raises(InputError, match="needs --out, and no DVC"):
        seconds_of("1m", train_vae.Config, None)
    monkeypatch.setenv("DVC_STAGE", "train_vae")
    with pytest.raises(InputError, match="needs --out, and no DVC"):
        seconds_of("1m", train_vae.Config, tmp_path)


def test_skipped_steps_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = run_in(tmp_path, steps=20)
    trainer = trainer_of(run)
    loss = trainer.loss
    trainer.loss = lambda index: loss(index) * (math.nan if trainer.step in (3, 4) else 1.0)
    fit(run, trainer, lambda network: 0.0)
    words = "stage: warning: 2 of 20 steps had a non-finite loss or gradient, and changed nothing"
    assert words in capsys.readouterr().err
