"""Training or sampling, repeated over seeds."""

import json
import shutil
import sys
from contextlib import nullcontext
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import ROOT, change, run_here, run_in

from ldm import Interrupted
from stages.runner import read_yaml, run_command
from tools import repeat
from tools.repeat import SAMPLING, Repetition, key_of, seconds_of, summary, variances

COMMAND = [sys.executable, "-m", "tools.repeat"]


def test_deviations_are_told_apart():
    """Trainings, samplings whose noise all trainings share, and the two together: each finds its own deviation."""
    rng = np.random.default_rng(0)
    training, noise, both = 0.3, 0.2, 0.1
    by_training, by_sampling = rng.normal(0, training, (400, 1)), rng.normal(0, noise, (1, 300))
    found = variances(1 + by_training + by_sampling + rng.normal(0, both, (400, 300)))
    assert found == (pytest.approx(training**2, rel=0.25), pytest.approx(noise**2 + both**2, rel=0.25))
    few = [variances(1 + rng.normal(0, 0.3, (3, 1)) + rng.normal(0, 0.2, (1, 3))) for _ in range(2000)]
    assert np.mean([training for training, _ in few]) == pytest.approx(0.3**2, rel=0.1)  # unbiased for few seeds too
    assert np.mean([sampling for _, sampling in few]) == pytest.approx(0.2**2, rel=0.1)
    assert variances(np.array([[1.0, 2.0]])) == (None, 0.5)
    assert variances(np.array([[1.0], [2.0]])) == (0.5, None)


def test_the_summary_of_a_table():
    row = {"fid": 11.0, "fid_std": 9.0, "fid_real_std": 0.5, "n": 5, "worst": None, "agree": 0.9, "recall": 0.99}
    rows = [[row, row | {"fid": 12.0, "recall": 0.01}], [row | {"fid": 13.0}, row | {"fid": 14.0, "agree": None}]]
    found = summary(rows)
    assert found.keys() == {"fid", "agree", "recall"}
    assert found["agree"] == {"mean": None, "values": [[0.9, 0.9], [0.9, None]]}  # no mean where a row has a gap
    assert (found["recall"]["low"], found["recall"]["high"]) == (0, 1)  # a share is no less and no more
    fid = found["fid"]
    assert (fid["mean"], fid["values"]) == (12.5, [[11.0, 12.0], [13.0, 14.0]])
    assert (fid["training_std"], fid["sampling_std"]) == (pytest.approx(2**0.5), pytest.approx(0.5**0.5))
    reach = 1.96 * (2 + 0.5 + 0.5**2) ** 0.5
    assert (fid["low"], fid["high"]) == (pytest.approx(12.5 - reach), pytest.approx(12.5 + reach))


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "handed_on"), [(KeyboardInterrupt(), []), (Interrupted("stop", 143), ["terminate"])])
def test_a_signal_waits_for_the_stage_and_ends_the_repetition(monkeypatch, tmp_path, stop, handed_on):
    """Ctrl-C reaches the stage by itself; SIGTERM is handed on to it."""
    told = []

    class Stage:
        waits = iter([stop])

        def __init__(self, command):
            told.append(command[2])

        def wait(self):
            for error in self.waits:
                raise error
            told.append("waited")
            return 130

        def terminate(self):
            told.append("terminate")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("subprocess.Popen", Stage)
    with pytest.raises(type(stop)):
        Repetition(tmp_path, ()).run_stages(["sample", "decode"], 1, tmp_path, {})
    assert told == ["stages.sample", *handed_on, "waited"]


def test_the_time_of_an_interrupted_run_counts(monkeypatch, tmp_path):
    repetition, clock = Repetition(tmp_path, ()), iter([0.0, 30.0, 100.0, 112.0])
    monkeypatch.setattr("tools.repeat.key_of", lambda names: "key")
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    for stop in (Interrupted("stop", 143), None):
        monkeypatch.setattr(Repetition, "run_stages", Mock(side_effect=stop))
        with pytest.raises(Interrupted) if stop else nullcontext():
            repetition.once(["train_diffusion"], 1, tmp_path, {}, "")
    assert seconds_of(tmp_path) == {"key": 42.0}
    assert (tmp_path / "key.txt").read_text() == "key"


@pytest.mark.slow
def test_repeating_the_sampling_over_seeds(project, monkeypatch, tmp_path):
    """Mean and deviation; a seed that is unfinished is run again, and all are when anything they share has changed."""
    copy = shutil.copytree(project, tmp_path / "copy")
    command = [*COMMAND, "--sample", "1,2", "--set", "evaluate.final=false", "--out", str(tmp_path)]
    first = run_in(copy, *command)
    assert first.returncode == 0, first.stderr
    paths = [tmp_path / f"sample-{seed}" / "measures.json" for seed in (1, 2)]
    rows = [json.loads(path.read_text())["diffusion"] for path in paths]
    assert rows[0]["fid"] != rows[1]["fid"]
    assert not [key for row in rows for key in row if "test" in key or key == "copies"]  # a choice sees no test image
    found = json.loads((tmp_path / "summary.json").read_text())
    assert (found["train"], found["sample"], found["n"]) == ([], [1, 2], 300)
    values = read_yaml(copy / "params.yaml")
    evaluate = {key: value for key, value in values["evaluate"].items() if key != "row"} | {"final": False}
    sample = {key: value for key, value in values["sample"].items() if key != "seed"}
    others = {name: values[name] for name in ("train_vae", "decode")}
    assert found["parameters"] == others | {"sample": sample, "evaluate": evaluate}
    assert "training_seconds" not in found
    assert found["fid"]["values"] == [[row["fid"] for row in rows]]
    assert found["fid"]["mean"] == pytest.approx((rows[0]["fid"] + rows[1]["fid"]) / 2)
    assert found["fid"]["sampling_std"] == pytest.approx(abs(rows[0]["fid"] - rows[1]["fid"]) / np.sqrt(2))
    assert f"{found['fid']['mean']:.4g} ±" in first.stdout

    made = [path.stat().st_mtime_ns for path in paths]
    (tmp_path / "sample-2/key.txt").unlink()
    again = run_in(copy, *command)
    assert " ± " in again.stdout
    assert first.stdout.endswith(again.stdout)  # seed 2 and the summary, as before
    assert [path.stat().st_mtime_ns == before for path, before in zip(paths, made, strict=True)] == [True, False]

    monkeypatch.chdir(copy)
    monkeypatch.setattr(repeat, "ROOT", copy)
    keys = [key_of(SAMPLING)]
    assert (tmp_path / "sample-1/key.txt").read_text() == f"{keys[0]} evaluate.final=false"
    change(copy / "params.yaml", {"sample.steps": 3})
    keys.append(key_of(SAMPLING))
    (copy / "ldm/sampling/reverse.py").write_text("# edited")
    keys.append(key_of(SAMPLING))
    (copy / "artifacts/train_diffusion/guide.safetensors").write_text("another")
    keys.append(key_of(SAMPLING))
    (copy / "artifacts/decode/generated.safetensors").write_text("another")  # made anew for each seed
    keys.append(key_of(SAMPLING))
    assert len(set(keys)) == 4
    assert keys[-1] == keys[-2]


@pytest.mark.slow
def test_repeating_the_training(project, tmp_path):
    settings = ["--set", "train_diffusion.optimisation.steps=20", "--set", "sample.steps=3"]
    done = run_in(project, *COMMAND, "--train", "1,2", "--sample", "5", *settings, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "summary.json").read_text())
    rows = [json.loads((tmp_path / f"train-{seed}/sample-5/measures.json").read_text()) for seed in (1, 2)]
    assert found["fid"]["values"] == [[row["diffusion"]["fid"]] for row in rows]
    assert len(json.loads((tmp_path / "train-1/history.json").read_text())) == 2  # of 20 steps
    assert found["parameters"]["train_diffusion"]["optimisation"]["steps"] == 20
    assert all(1 <= seconds < 600 for seconds in found["training_seconds"])
    assert len(found["training_seconds"]) == 2


@pytest.mark.slow
def test_a_stage_that_fails_ends_the_repetition(project, tmp_path):
    copy = shutil.copytree(project, tmp_path / "copy")
    (copy / "artifacts/train_diffusion/guide.safetensors").unlink()
    done = run_in(copy, *COMMAND, "--sample", "1,2", "--out", str(tmp_path))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert "guide.safetensors is missing" in lines[0]
    assert lines[-1] == "repeat: seed 1: sample failed (exit code 2); its message is above"
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sample", "1"], "one seed has no deviation; name at least two"),
        (["--sample", "1,1"], "--sample 1,1: different numbers"),
        (["--train", "1,x", "--sample", "1"], "--train 1,x: different numbers"),
        (["--train", "1,2", "--sample", ""], "one seed has no deviation"),
        (["--sample", "1,2", "--set", "train_diffusion.seed=1"], "of a stage that is run: sample, decode, evaluate"),
        (
            ["--sample", "1,2", "--set", "sample.seed=5"],
            "--set sample.seed=5: this command sets train_diffusion.seed, ",
        ),
        (["--sample", "1,2", "--set", "evaluate.row=random"], "--set evaluate.row=random: this command sets"),
        (["--sample", "1,-2"], "--sample 1,-2: different numbers of at most 18 digits"),
        (["--sample", "1,2", "--set", "sample=3"], "--set sample=3: STAGE.KEY=VALUE is wanted"),
        (["--train", "1,2", "--sample", "1", "--set", "decode.rows=0"], "decode.rows: 0 will not do"),
        (["--train", "1,2", "--sample", "1", "--set", "sample.label=7"], "and --set: sample.label: 7 is one class"),
        (["--sample", "1,2", "--set", "sample.n=5"], "params.yaml and --set: sample.n: 5 is fewer than evaluate.n"),
    ],
)
def test_bad_requests(tmp_path, arguments, words):
    main = partial(run_command, repeat.command, "repeat")
    done = run_here(ROOT, main, "repeat", *arguments, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "out").exists()
