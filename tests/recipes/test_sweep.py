"""The sweep of quality against effort: a point, and the report of all."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_in
from PIL import Image

from ldm import artifacts
from recipes.sweep.report import figure
from stages.runner import path_of, read_yaml

pytestmark = pytest.mark.slow


def point(project: Path, out: Path, *settings: str):
    arguments = [a for s in ("n=30", "resamples=2", *settings) for a in ("--set", s)]
    command = [sys.executable, "-m", "recipes.sweep.sweep", *arguments, "--out", str(out)]
    return run_in(project, *command, OMP_NUM_THREADS="1")


# of the six or more steps, those at σ̄ from 0.3 to 4 are guided, and so take a pass of the guide too
@pytest.mark.parametrize(("sampler", "evaluations", "steps"), [("dpmpp_2m", 12, 7), ("heun", 16, 6), ("ddpm", 40, 25)])
def test_passes_are_counted(project, tmp_path, sampler, evaluations, steps):
    """No more than asked for, and one more step would be too many; the guide's passes count."""
    done = point(project, tmp_path, f"sampler={sampler}", f"evaluations={evaluations}", "n=200")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "point.json").read_text())
    assert (row["sampler"], row["steps"]) == (sampler, steps)
    assert evaluations - 3 <= row["evaluations"] <= evaluations
    assert row["fid_val"] > 1
    assert 0 < row["seconds_per_10k"] < 10_000
    assert (row["data"], row["n"]) == ("mnist-5k-limit-300", 200)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["n=5000"], "n 5000 is more than the 300 validation images"),
        (["n=128"], "images compared: 128 samples cannot give the covariance"),
        (
            ["n=200", "evaluations=1", "spacing=karras", "spacings.karras.sigma_max=3.0"],
            "evaluations 1 are not enough for one step",
        ),
    ],
)
def test_bad_points(project, tmp_path, settings, words):
    done = point(project, tmp_path, *settings)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert not (tmp_path / "point.json").exists()


def test_a_point_reads_what_the_pipeline_wrote(project):
    """Every input of the matrix is there, and of the kind that its name says."""
    for name in ("sweep", "sweep_ancestral"):
        entry = read_yaml(project / "recipes/sweep/dvc.yaml")["stages"][name]
        data = [Path(dep) for dep in entry["deps"] if "artifacts" in Path(dep).parts]
        assert len(data) == 7
        for path in data:
            artifacts.load(project / path, path.stem)
        assert path_of(entry["outs"][0]).endswith("point.json")


def rows() -> list[dict]:
    """Of two samplers; not at one place, for which matplotlib has no logarithmic axis on every CPU."""
    own = [{"evaluations": 5 + 3 * i, "seconds_per_10k": 30.0 + 10 * i} for i in range(2)]
    shared = {"steps": 3, "fid_val_std": 0.1}
    return [{"sampler": name, "fid_val": 2.5 + i} | own[i] | shared for i, name in enumerate("ab")]


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return (picture == colour).all(-1).sum() > 20


def test_the_report(project, tmp_path):
    points = tmp_path / "points"
    for row in rows():
        (points / row["sampler"]).mkdir(parents=True)
        (points / row["sampler"] / "point.json").write_text(json.dumps(row))
    command = [sys.executable, "-m", "recipes.sweep.report", "--in", f"points={points}"]
    command += ["--out", str(tmp_path / "out")]
    done = run_in(project, *command)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out/table.md").read_text().splitlines()
    assert table[2:] == ["| a | 3 | 5 | 2.50 ± 0.10 | 30 |", "| b | 3 | 8 | 3.50 ± 0.10 | 40 |"]
    drawn = (tmp_path / "out/sweep.png").read_bytes()
    assert drawn == figure(rows())
    assert drawn != figure([row | {"fid_val": 9.0} for row in rows()])
    with Image.open(tmp_path / "out/sweep.png") as file:
        picture = np.asarray(file.convert("RGB"))
    assert (picture == 255).all(-1).mean() > 0.7  # the ground
    assert has_colour(picture, (0x00, 0x72, 0xB2))  # the first two of stages/runner/figures.py
    assert has_colour(picture, (0xB3, 0x47, 0x00))
    (points / "a/point.json").write_text("{}")
    assert "a/point.json is no point of the sweep" in run_in(project, *command).stderr
    for name in "ab":
        (points / name / "point.json").unlink()
    assert "holds no points" in run_in(project, *command).stderr


def test_the_table_is_written_before_the_figure(tmp_path):
    """Of the committed points; where no figure can be drawn, the table is there."""
    (tmp_path / "matplotlib.py").write_text("raise SystemExit('no figures')")
    words = (sys.executable, "-m", "recipes.sweep.report", "--out", str(tmp_path / "out"))
    done = run_in(ROOT, *words, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1
    assert "no figures" in done.stderr
    committed = (ROOT / "recipes/sweep/artifacts/table.md").read_text("utf-8")
    assert (tmp_path / "out/table.md").read_text("utf-8") == committed
    assert not (tmp_path / "out/sweep.png").exists()
