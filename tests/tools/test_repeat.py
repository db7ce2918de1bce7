"""Training or sampling, repeated over seeds."""

import json
import shutil
import sys

import numpy as np
import pytest
from conftest import change, run_in

from tools.repeat import summary

COMMAND = [sys.executable, "-m", "tools.repeat"]


def test_deviations_are_told_apart():
    """Three trainings, each sampled twice: what the samplings scatter is not taken for the trainings' scatter."""
    rng = np.random.default_rng(0)
    trainings, samplings, sets = 0.3, 0.1, 0.2
    rows = [
        [{"fid": float(mean + rng.normal(0, samplings)), "fid_std": sets, "n": 5, "worst": None} for _ in range(40)]
        for mean in 1 + rng.normal(0, trainings, 200)
    ]
    found = summary(rows)
    assert found.keys() == {"fid"}
    fid = found["fid"]
    assert fid["training_std"] == pytest.approx(trainings, rel=0.15)
    assert fid["sampling_std"] == pytest.approx(samplings, rel=0.05)
    assert fid["mean"] == pytest.approx(np.mean([[row["fid"] for row in drawn] for drawn in rows]))
    reach = 1.96 * np.sqrt(fid["training_std"] ** 2 + fid["sampling_std"] ** 2 + sets**2)
    assert (fid["low"], fid["high"]) == (pytest.approx(fid["mean"] - reach), pytest.approx(fid["mean"] + reach))
    equal = [[{"fid": 1.0}, {"fid": 2.0}]] * 3  # the means of the trainings do not differ at all
    assert summary(equal)["fid"]["training_std"] == 0
    one = summary(rows[:1])["fid"]
    assert (one["training_std"], one["sampling_std"] > 0) == (0, True)


@pytest.mark.slow
def test_repeating_the_sampling_over_seeds(project, tmp_path):
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

    def key() -> str:
        code = "from tools.repeat import SAMPLING, key_of; print(key_of(SAMPLING))"
        return run_in(copy, sys.executable, "-c", code).stdout

    keys = [key()]
    assert (tmp_path / "sample-1/key.txt").read_text() == f"{keys[0].strip()} evaluate.final=false"
    change(copy / "params.yaml", {"sample.steps": 3})
    keys.append(key())
    (copy / "ldm/sampling/reverse.py").write_text("# edited")
    keys.append(key())
    (copy / "artifacts/train_diffusion/guide.safetensors").write_text("another")
    keys.append(key())
    (copy / "artifacts/decode/generated.safetensors").write_text("another")  # made anew for each seed
    keys.append(key())
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
        (["--sample", "1"], "one seed has no deviation; name two or more"),
        (["--sample", "1,1"], "--sample 1,1: a seed is named twice"),
        (["--train", "1,x", "--sample", "1"], "--train 1,x: whole numbers with commas are wanted"),
        (["--sample", "1,2", "--set", "train_vae.seed=1"], "--set train_vae.seed=1: the stages repeated are"),
    ],
)
def test_bad_requests(run, tmp_path, arguments, words):
    done = run(*COMMAND, *arguments, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "out").exists()
