"""Training or sampling, repeated over seeds."""

import json
import shutil
import sys

import numpy as np
import pytest
from conftest import change, run_in

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "tools.repeat", "--from", "sample", "--seeds", "1,2", "--out"]


def test_repeating_the_sampling_over_seeds(project, tmp_path):
    """Mean and deviation; a seed that is unfinished is run again, and all are when anything they share has changed."""
    copy = shutil.copytree(project, tmp_path / "copy")
    first = run_in(copy, *COMMAND, str(tmp_path))
    assert first.returncode == 0, first.stderr
    paths = [tmp_path / f"sample-{seed}" / "diffusion.json" for seed in (1, 2)]
    rows = [json.loads(path.read_text()) for path in paths]
    assert rows[0]["fid"] != rows[1]["fid"]
    found = json.loads((tmp_path / "summary.json").read_text())
    assert (found["seeds"], found["n"]) == ([1, 2], 300)
    assert found["fid"]["values"] == [row["fid"] for row in rows]
    assert found["fid"]["mean"] == pytest.approx((rows[0]["fid"] + rows[1]["fid"]) / 2)
    assert found["fid"]["std"] == pytest.approx(abs(rows[0]["fid"] - rows[1]["fid"]) / np.sqrt(2))
    assert f"{found['fid']['mean']:.4g} ±" in first.stdout

    made = [path.stat().st_mtime_ns for path in paths]
    (tmp_path / "sample-2/key.txt").unlink()
    again = run_in(copy, *COMMAND, str(tmp_path))
    assert " ± " in again.stdout
    assert first.stdout.endswith(again.stdout)  # seed 2 and the summary, as before
    assert [path.stat().st_mtime_ns == before for path, before in zip(paths, made, strict=True)] == [True, False]

    def key() -> str:
        return run_in(copy, sys.executable, "-c", "from tools.repeat import key_of; print(key_of('sample'))").stdout

    keys = [key()]
    assert keys[0].strip() == (tmp_path / "sample-1/key.txt").read_text()
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


def test_a_stage_that_fails_ends_the_repetition(project, tmp_path):
    copy = shutil.copytree(project, tmp_path / "copy")
    (copy / "artifacts/train_diffusion/guide.safetensors").unlink()
    done = run_in(copy, *COMMAND, str(tmp_path))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert "guide.safetensors is missing" in lines[0]
    assert lines[-1] == "repeat: seed 1: sample failed (exit code 2); its message is above"
    assert not (tmp_path / "summary.json").exists()
