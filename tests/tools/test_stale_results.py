"""Which committed results are older than the code, and the proof that an edit changes none of them."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, copy_project, run_in
from ruamel.yaml import YAML

from ldm import InputError, artifacts
from stages.runner import read_yaml
from tools import check, same_bytes, small

pytestmark = pytest.mark.slow
GIT = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org"]
DATA = "prepare_data/images.safetensors"


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """A repository whose pipeline is one short stage, with a committed run."""
    folder = copy_project(tmp_path_factory.mktemp("reference") / "repository")
    for name in ("recipes", "docs", "tests", "bench"):
        shutil.rmtree(folder / name)
    yaml = YAML()
    dag = yaml.load((folder / "dvc.yaml").read_text("utf-8"))
    dag["stages"] = {"prepare_data": dag["stages"]["prepare_data"]}
    for key in ("artifacts", "metrics", "plots"):
        del dag[key]
    with (folder / "dvc.yaml").open("w") as file:
        yaml.dump(dag, file)
    for command in (["dvc", "repro"], ["git", "add", "-A"], [*GIT, "commit", "-qm", "Reference"]):
        done = run_in(folder, *command)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def repository(reference, tmp_path, monkeypatch) -> Path:
    """A copy of it, to edit."""
    folder = shutil.copytree(reference, tmp_path / "repository")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(check, "ROOT", folder)
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), "utf-8")


def append(path: Path, text: str = "\n# edited\n") -> None:
    path.write_text(path.read_text("utf-8") + text, "utf-8")


def stale() -> list[str]:
    return list(check.stale_results())


def test_results_are_stale_after_an_edit_and_it_is_said_why(repository):
    assert stale() == []
    append(repository / "ldm/errors.py")
    append(repository / "stages/runner/fit.py")
    assert stale() == []  # these change no output
    append(repository / "ldm/data/known.py")
    append(repository / "ldm/config.py")
    (line,) = stale()
    assert line == "prepare_data: ldm/data modified; ldm/config.py modified"


def test_results_are_stale_after_a_change_of_parameters_or_outputs(repository):
    edit(repository / "params.yaml", "limit: 300", "limit: 200")
    (line,) = stale()
    assert line.startswith("prepare_data: ")
    assert "params.yaml" in line
    edit(repository / "params.yaml", "limit: 200", "limit: 300")
    data = repository / "artifacts" / DATA
    data.rename(data.with_suffix(".moved"))
    assert stale() == []  # `dvc pull` fetches it
    data.write_bytes(b"other")
    (line,) = stale()
    assert f"artifacts/{DATA} modified" in line


def test_what_never_ran_is_not_stale(repository):
    (repository / "recipes/new").mkdir(parents=True)
    dag = 'stages: {prepare_data: {wdir: ../.., cmd: "true", deps: [params.yaml], outs: [recipes/new/out]}}\n'
    (repository / "recipes/new/dvc.yaml").write_text(dag)
    assert stale() == []


def test_the_command_lists_them(repository):
    append(repository / "ldm/data/known.py")
    command = "from tools import check; check.check_parameters = lambda recipe: None; check.command()"
    done = run_in(repository, sys.executable, "-c", command)  # the parameters are those of a longer pipeline
    assert done.returncode == 0, done.stderr
    assert done.stdout == "prepare_data: ldm/data modified\n1 committed results are stale\n"


def same(repository: Path, *arguments: str):
    return run_in(repository, sys.executable, "-m", "tools.same_bytes", *arguments)


def test_an_edit_that_changes_nothing_is_committed_without_a_rerun(repository):
    append(repository / "ldm/data/known.py")
    before = read_yaml(repository / "dvc.lock")["stages"]["prepare_data"]
    assert len(stale()) == 1
    done = same(repository, "HEAD", "--commit")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "every output of the small pipeline is that of HEAD\n"
    assert stale() == []
    after = read_yaml(repository / "dvc.lock")["stages"]["prepare_data"]
    changed = {a["path"] for a, b in zip(before["deps"], after["deps"], strict=True) if a != b}
    assert changed == {"ldm/data"}
    assert after | {"deps": []} == before | {"deps": []}


def test_an_edit_that_changes_an_output_is_not(repository):
    seeded = "torch.Generator().manual_seed(config.seed)"
    edit(repository / "stages/prepare_data.py", seeded, f"{seeded[:-1]} + 1)")
    lock = (repository / "dvc.lock").read_bytes()
    done = same(repository, "HEAD", "--commit")
    assert done.returncode == 2
    assert re.search(rf"^{DATA} differs in .*test_images.*train_labels", done.stdout, re.MULTILINE), done.stdout
    last = done.stderr.splitlines()[-1]
    assert last == "same_bytes: 1 outputs differ from those of HEAD; run 'dvc repro'"
    assert (repository / "dvc.lock").read_bytes() == lock
    assert len(stale()) == 1


def test_data_that_are_not_those_of_the_lock_are_not_committed(repository):
    append(repository / "ldm/data/known.py")
    (repository / "artifacts" / DATA).unlink()
    lock = (repository / "dvc.lock").read_bytes()
    done = same(repository, "HEAD", "--commit")
    assert done.returncode == 2
    assert f"prepare_data: artifacts/{DATA} is deleted" in done.stderr.splitlines()[-1]
    assert (repository / "dvc.lock").read_bytes() == lock


def test_changed_parameters_are_not_committed(repository):
    """The small pipeline may have values of its own in their place, and so say nothing of them."""
    edit(repository / "params.yaml", "limit: 300", "limit: 200")
    lock = (repository / "dvc.lock").read_bytes()
    done = same(repository, "HEAD", "--commit")
    assert done.returncode == 2
    assert "prepare_data: params.yaml is " in done.stderr
    assert done.stderr.endswith("; run dvc checkout, or dvc repro\n")
    assert done.stderr.count("\n") == 1
    assert (repository / "dvc.lock").read_bytes() == lock


@pytest.mark.parametrize(("folder", "words"), [("recipes/toys", "run over a matrix"), ("empty", "'sample' is unknown")])
def test_what_is_no_pipeline_is_not_checked_as_one(monkeypatch, tmp_path, folder, words):
    monkeypatch.chdir(ROOT)
    (tmp_path / "dvc.yaml").write_text("stages:")
    (tmp_path / "params.yaml").write_text("sample: {}")
    with pytest.raises(InputError, match=words):
        check.check_parameters(tmp_path if folder == "empty" else Path(folder))


def test_a_pipeline_that_draws_nothing_is_checked_too(tmp_path):
    """One of one's own, which ends before there are samples."""
    (tmp_path / "dvc.yaml").write_text("stages: {prepare_data: {cmd: x}}")
    (tmp_path / "params.yaml").write_text("prepare_data: {seed: 0, dataset: mnist, root: data}")
    check.check_parameters(tmp_path)
    (tmp_path / "params.yaml").write_text("prepare_data: {seed: -1, dataset: mnist, root: data}")
    with pytest.raises(InputError, match=r"prepare_data\.seed: -1 will not do"):
        check.check_parameters(tmp_path)


def test_a_program_that_is_missing_is_named(tmp_path):
    done = run_in(ROOT, sys.executable, "-m", "tools.small", str(tmp_path / "x"), PATH="/nonexistent")
    assert done.returncode == 2
    assert done.stderr == "small: No such file or directory: git; put it there, or install the program\n"


def test_a_command_without_end_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(small, "TIMEOUT", 0.5)
    with pytest.raises(InputError, match=r"^it failed: it was stopped after 0\.5 s$"):
        small.run_or_fail("it failed", tmp_path, sys.executable, "-c", "import time; time.sleep(60)")


def test_a_command_that_fails_without_a_word_gives_its_exit_code(tmp_path):
    with pytest.raises(InputError, match="it failed: exit code 3"):
        small.run_or_fail("it failed", tmp_path, "sh", "-c", "exit 3")


def test_bad_revisions_and_code_that_fails(repository):
    done = same(repository, "nosuch")
    assert done.returncode == 2
    assert done.stderr.startswith("same_bytes: nosuch: ")
    assert done.stderr.count("\n") == 1
    append(repository / "stages/prepare_data.py", "\n1 / 0\n")
    done = same(repository, "HEAD")
    assert done.returncode == 2
    assert "dvc repro failed in " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def outputs(tmp_path) -> tuple[Path, Path]:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder, seed in ((before, 0), (after, 1)):
        tensors = {"a": torch.arange(3.0), "b": torch.zeros(2)}
        artifacts.save(folder / "vae/vae.safetensors", "vae", tensors, {"seed": seed})
        (folder / "vae/history.json").write_text("[]")
    return before, after


def test_tensors_are_compared_by_value_and_other_files_by_bytes(outputs):
    before, after = outputs
    assert (before / "vae/vae.safetensors").read_bytes() != (after / "vae/vae.safetensors").read_bytes()
    assert same_bytes.differences(before, after) == []
    (after / "vae/history.json").write_text("[ ]")
    artifacts.save(after / "vae/vae.safetensors", "vae", {"a": torch.arange(3.0), "b": torch.ones(2)}, {})
    (before / "vae/metrics.json").write_text("{}")
    (after / "grid.png").write_bytes(b"")
    assert same_bytes.differences(before, after) == [
        "grid.png is there only after",
        "vae/metrics.json is there only before",
        "vae/history.json differs",
        "vae/vae.safetensors differs in b",
    ]


@pytest.mark.parametrize("tensor", [torch.zeros(2).double(), torch.zeros(2, 1), torch.zeros(3)])
def test_another_type_or_shape_differs(outputs, tensor):
    before, after = outputs
    artifacts.save(after / "vae/vae.safetensors", "vae", {"a": torch.arange(3.0), "b": tensor}, {})
    assert same_bytes.differences(before, after) == ["vae/vae.safetensors differs in b"]
