"""Commands where people run them: other encodings, schedulers' variables, no home, a notebook's backend."""

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_in

from stages.runner import processes

HELP = [sys.executable, "-m", "stages.train_diffusion", "--help"]
READ = [sys.executable, "-m", "stages.prepare_data", "--set", "source=embedded", "--set", "limit=100", "--out"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii", "utf-8"])
def test_help_in_every_encoding(run, encoding):
    done = run(*HELP, PYTHONIOENCODING=encoding, LANG="C", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert "guide_step" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"},  # a scheduler's, without torchrun
        {"RANK": "x", "WORLD_SIZE": ""},
        {"HOME": "/nonexistent"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    ],
)
def test_a_stage_runs_in_any_environment(run, tmp_path, environment):
    done = run(*READ, str(tmp_path / "ä b"), **environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ä b/images.safetensors").exists()
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_stage_that_draws_runs_in_all_of_it_at_once(project, tmp_path):
    environment = {"RANK": "3", "WORLD_SIZE": "4", "HOME": "/nonexistent", "MPLBACKEND": "module://no_such_backend"}
    environment |= {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = run_in(project, sys.executable, "-m", "stages.memorisation", "--out", str(tmp_path / "ä b"), **environment)
    assert done.returncode == 0, done.stderr
    for name in ("memorisation.json", "scores.png", "closest_pairs.png"):
        assert (tmp_path / "ä b" / name).read_bytes() == (project / "artifacts/report" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root takes the number of another")
def test_a_user_without_a_name_or_home(run, tmp_path):
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    other = ["setpriv", "--reuid", "54321", "--clear-groups"]
    if run(*other, sys.executable, "-c", "import ldm").returncode:
        pytest.skip(f"others may not read {ROOT}, or its environment")
    environment = {"PYTHONDONTWRITEBYTECODE": "1", "HOME": "/"}
    asked = [*other, "env", "-u", "USER", "-u", "LOGNAME", "-u", "HOME", "make", "-n", "-p", "setup"]
    said = run(*asked).stdout  # what make knows, of which DVC needs a name
    assert re.search(r"^LOGNAME := 54321$", said, re.MULTILINE), said[-500:]
    done = run(*other, *READ, str(tmp_path / "out"), **environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/images.safetensors").stat().st_uid == 54321


@pytest.mark.slow
def test_figures_in_a_notebooks_backend_and_with_any_name(run):
    """A backend that is not installed, and names that would be formulas or lack a glyph."""
    code = """if True:
        from stages.runner import new_figure, png_of
        figure = new_figure(2, 2)
        figure.add_subplot().set_title("$x_$ 桜 \\\\frac")
        assert png_of(figure).startswith(b"\\x89PNG")
    """
    done = run(sys.executable, "-c", code, MPLBACKEND="module://no_such_backend")
    assert done.returncode == 0, done.stderr


def test_threads_are_no_more_than_the_cores_of_the_control_group(monkeypatch):
    """joblib reads its quota, in either version of control groups."""
    used: list[int] = []
    blas = SimpleNamespace(num_threads=64, set_num_threads=used.append)
    one = SimpleNamespace(num_threads=1, set_num_threads=lambda n: pytest.fail("more than it has"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    monkeypatch.setattr("torch.get_num_threads", lambda: 32)
    monkeypatch.setattr("torch.set_num_threads", used.append)
    controller = SimpleNamespace(lib_controllers=[blas, one])
    monkeypatch.setattr("threadpoolctl.ThreadpoolController", lambda: controller)
    for cores in (2, 64):
        monkeypatch.setattr("joblib.cpu_count", lambda cores=cores: cores)
        processes.limit_threads()
    assert used == [2, 2, 32]  # torch and BLAS in the first, torch as it is in the second
    assert os.environ["OPENBLAS_NUM_THREADS"] == "2"


def test_nested_brackets_end_in_one_line(run, tmp_path):
    for value in ("[" * 20_000, "{a: " * 20_000):
        done = run(*READ, str(tmp_path), "--set", f"limit={value}")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr[-300:]
        assert "is not a YAML value" in done.stderr
    nested = b"[" * 200_000
    (tmp_path / "images.safetensors").write_bytes(len(nested).to_bytes(8, "little") + nested)
    words = ["--in", f"images={tmp_path / 'images.safetensors'}", "--out", str(tmp_path / "out")]
    done = run(sys.executable, "-m", "stages.train_classifier", *words)
    assert done.returncode == 2
    assert "is truncated, corrupt or not an artifact of this project" in done.stderr.splitlines()[-1]


def test_the_time_left_is_said_once(project_training):
    lines = [line for line in project_training.splitlines() if " to go, for " in line]
    assert len(lines) == 1
    assert re.fullmatch(r"train_vae: about \d\d:\d\d to go, for 6 steps in all", lines[0])


@pytest.fixture
def project_training(monkeypatch, tmp_path, capsys) -> str:
    """What a short training says, in which the time left is told at once."""
    from stages import prepare_data, train_vae

    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    lines = (ROOT / "dvc.yaml").read_text().splitlines(keepends=True)
    without = ("classifier.safetensors,", "features.safetensors,")
    (tmp_path / "dvc.yaml").write_text("".join(line for line in lines if not line.rstrip().endswith(without)))
    monkeypatch.setattr(sys.modules["stages.runner.fit"], "TELL_AFTER", 0.0)
    monkeypatch.setattr("sys.argv", ["prepare_data", "--set", "source=embedded", "--set", "limit=60", "--out", "in"])
    prepare_data.main()
    words = ["optimisation.steps=6", "optimisation.batch_size=10", "optimisation.record_every=2"]
    settings = [word for text in words for word in ("--set", text)]
    sources = ["--in", "images=in/images.safetensors"]
    monkeypatch.setattr("sys.argv", ["train_vae", *settings, *sources, "--out", "out"])
    train_vae.main()
    assert len(json.loads((tmp_path / "out/history.json").read_text())) == 3
    said = capsys.readouterr()
    return said.out + said.err
