"""A resumed run is of one code: what the key of the kept states depends on, how long they stay, and what is said."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_in

from ldm import InputError
from ldm.config import Section
from ldm.training import Optimisation
from stages.runner import Run, checkpoints
from tools import check


class Inner(Section):
    """A section within."""

    steps: int = 60
    width: int = 8


class Config(Section):
    """A configuration that is changed."""

    seed: int = 0
    inner: Inner = Inner()


class Trained(Section):
    """A configuration with a training."""

    optimisation: Optimisation


def run_of(config: Section, **changes: Any) -> Run[Any]:
    return replace(Run("stage", config, {}, {}, "cpu"), **changes)


@pytest.fixture
def code(tmp_path, monkeypatch) -> Path:
    """A copy of the code, of which the key is taken."""
    for folder in ("ldm", "stages", "recipes/toys", "recipes/sweep", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("artifacts", "__pycache__"))
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    script = tmp_path / "recipes/toys/toy.py"  # of the recipe that runs
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    return tmp_path


def key_of(run: Run[Any]) -> str:
    return str(checkpoints.facts_of(run))


ROOMS = [
    "ldm/networks/__init__.pyi",
    "ldm/config.py",
    "ldm/data/toys.py",
    "ldm/diffusion/loss.py",
    "ldm/metrics/frechet.py",
]
ROOMS += ["ldm/networks/unet.py", "ldm/sampling/samplers.py", "ldm/training/loop.py", "stages/train_vae.py"]
ROOMS += ["stages/runner/fit.py", "stages/runner/figures.py", "recipes/toys/toy.py", "recipes/toys/figures.py"]


@pytest.mark.parametrize("file", ROOMS)
def test_an_edit_of_a_file_of_any_room_changes_the_key(code, file):
    before = checkpoints.facts_of(run_of(Config()))
    (code / file).write_text((code / file).read_text("utf-8") + "# edited\n", "utf-8")
    after = checkpoints.facts_of(run_of(Config()))
    assert before != after
    assert checkpoints.first_difference(after, before).startswith(f"code.{file} is ")


def test_a_new_file_changes_the_key_and_code_that_does_not_run_does_not(code):
    before = key_of(run_of(Config()))
    for file in ("tools/check.py", "recipes/sweep/sweep.py"):
        (code / file).write_text("# edited\n", "utf-8")
    assert key_of(run_of(Config())) == before
    (code / "ldm/diffusion/new.py").write_text("", "utf-8")
    assert key_of(run_of(Config())) != before


def test_the_key_depends_on_precision_inputs_device_and_cpu(tmp_path, monkeypatch):
    training = {"steps": 1, "batch_size": 2, "lr": 0.1}
    plain, half = (
        run_of(Trained.parse({"optimisation": training | {"precision": precision}}, ""))
        for precision in ("fp32", "bf16")
    )
    facts = checkpoints.facts_of(plain)
    difference = checkpoints.first_difference(facts, checkpoints.facts_of(half))
    assert difference == "parameters.optimisation.precision is bf16 there and fp32 here"
    (tmp_path / "a").write_bytes(b"a")
    given = replace(plain, inputs={"images": tmp_path / "a"})
    keys = [key_of(given)]
    (tmp_path / "a").write_bytes(b"b")
    keys.append(key_of(given))
    monkeypatch.setattr(checkpoints, "cpu_kind", lambda: "another")
    keys.append(key_of(given))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    keys.append(key_of(given))
    for card in ("NVIDIA H100", "NVIDIA H200"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, card=card: card)
        keys.append(key_of(replace(given, device="cuda")))
    assert len(set(keys)) == 6
    assert checkpoints.facts_of(given) == checkpoints.facts_of(given)


def test_the_kind_of_cpu_has_vendor_and_vector_units(monkeypatch):
    found = checkpoints.cpu_kind()
    assert found == checkpoints.cpu_kind()
    text = "vendor_id\t: GenuineIntel\nflags\t\t: fpu amx_bf16 avx512f sse avx2\nvendor_id\t: GenuineIntel\n"
    monkeypatch.setattr(Path, "read_text", lambda *_: text)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert checkpoints.cpu_kind() == "x86_64 GenuineIntel amx_bf16 avx2 avx512f"


STATE = {"x": torch.arange(3)}


def test_a_trial_does_not_remove_the_states_of_an_unfinished_run(here, capsys):
    unfinished = checkpoints.Checkpoints(run_of(Config()))
    for number in (10, 20, 30):
        unfinished.save(number, STATE)
    kept = sorted(unfinished.folder.glob("*.safetensors"))
    assert [path.name for path in kept] == ["000000020.safetensors", "000000030.safetensors"]
    trial = checkpoints.Checkpoints(run_of(Config(inner=Inner(steps=2, width=9))))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"stage: an unfinished run has left checkpoints in {unfinished.folder} " in said
    assert "(inner.steps is 60 there and 2 here)" in said  # the first of two that differ
    assert trial.latest() is None
    trial.save(2, STATE)
    trial.finished()
    assert sorted(unfinished.folder.glob("*.safetensors")) == kept
    again = checkpoints.Checkpoints(run_of(Config()))
    assert capsys.readouterr().err == ""  # the trial is finished, and so not spoken of
    assert again.latest() is not None
    assert f"resuming from {kept[-1]}" in capsys.readouterr().err


def test_states_of_another_stage_are_not_spoken_of(here, capsys):
    checkpoints.Checkpoints(run_of(Config())).save(1, STATE)
    checkpoints.Checkpoints(run_of(Config(seed=1), name="other"))
    assert capsys.readouterr().err == ""


def test_states_older_than_a_week_are_removed(here, capsys):
    folders = []
    for seed, days in ((1, 6.9), (2, 7.1)):
        old = checkpoints.Checkpoints(run_of(Config(seed=seed)))
        old.save(1, STATE)
        folders.append(old.folder)
        for path in old.folder.iterdir():
            os.utime(path, (time.time() - days * 86400,) * 2)
    capsys.readouterr()
    checkpoints.Checkpoints(run_of(Config()))
    assert [folder.exists() for folder in folders] == [True, False]
    assert f"the checkpoints in {folders[1]} are older than a week, and removed" in capsys.readouterr().err


def test_a_run_goes_on_from_its_own_state_however_old(here):
    old = checkpoints.Checkpoints(run_of(Config()))
    old.save(1, STATE)
    for path in old.folder.iterdir():
        os.utime(path, (time.time() - 30 * 86400,) * 2)
    assert checkpoints.Checkpoints(run_of(Config())).latest() is not None


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"parameters": 3}'])
def test_facts_of_another_run_that_cannot_be_read_stop_nobody(here, capsys, text):
    other = checkpoints.Checkpoints(run_of(Config(seed=1)))
    other.save(1, STATE)
    other.finished()
    (other.folder / "facts.json").write_text(text)
    checkpoints.Checkpoints(run_of(Config())).save(1, STATE)
    assert f"{other.folder / 'facts.json'} cannot be read; python -m tools.check --clean" in capsys.readouterr().err


def test_a_long_run_is_as_old_as_its_last_state(here):
    long = checkpoints.Checkpoints(run_of(Config(seed=1)))
    long.save(1, STATE)
    os.utime(long.folder / "facts.json", (time.time() - 20 * 86400,) * 2)
    checkpoints.Checkpoints(run_of(Config()))
    assert long.folder.exists()


def test_without_resuming_the_states_go(here):
    first = checkpoints.Checkpoints(run_of(Config()))
    first.save(1, STATE)
    assert checkpoints.Checkpoints(run_of(Config(), resume=False)).latest() is None
    assert not list(first.folder.glob("*.safetensors"))


def test_cleaning_removes_all_of_them(here, monkeypatch):
    for file in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / file, here)
    checkpoints.Checkpoints(run_of(Config())).save(1, STATE)
    assert (here / "checkpoints").exists()
    (here / "elsewhere").mkdir()
    (here / "checkpoints/moved").symlink_to(here / "elsewhere")
    (here / "params.yaml").write_text("")  # a mistake there keeps nobody from cleaning
    with pytest.raises(InputError, match="must hold a mapping"):
        check.command.main(["--clean", "--recipe", "."], standalone_mode=False)
    assert list((here / "checkpoints").iterdir()) == []


def test_elsewhere_nothing_is_cleaned(here):
    (here / "checkpoints/theirs").mkdir(parents=True)
    with pytest.raises(InputError, match=r"dvc\.yaml is missing"):
        check.command.main(["--clean"], standalone_mode=False)
    assert (here / "checkpoints/theirs").exists()


@pytest.mark.slow
def test_a_run_killed_before_an_edit_starts_anew(project, tmp_path):
    folder = shutil.copytree(project, tmp_path / "copy")
    shutil.rmtree(folder / "checkpoints")
    changes = ["optimisation.steps=60", "optimisation.batch_size=16"]
    command = [sys.executable, "-m", "stages.train_vae", *(a for s in changes for a in ("--set", s))]
    command += ["--out", str(tmp_path / "out"), "--save-every", "0"]
    env = os.environ | {"PYTHONPATH": str(folder)}
    killed = subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.DEVNULL)
    while not (states := list(folder.glob("checkpoints/train_vae/*/[0-9]*.safetensors"))):
        assert killed.poll() is None
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "out/vae.safetensors").exists()
    trial = run_in(folder, *command, "--set", "optimisation.steps=2")
    assert trial.returncode == 0, trial.stderr
    assert f"an unfinished run has left checkpoints in {states[0].parent.relative_to(folder)}" in trial.stderr
    assert "(optimisation.steps is 60 there and 2 here)" in trial.stderr
    loss = folder / "ldm/networks/autoencoder.py"
    text = loss.read_text("utf-8")
    loss.write_text(text + "\n# edited\n", "utf-8")
    edited = run_in(folder, *command)
    assert edited.returncode == 0, edited.stderr
    assert "resuming" not in edited.stderr
    assert "(code.ldm/networks/autoencoder.py is " in edited.stderr
    loss.write_text(text, "utf-8")
    resumed = run_in(folder, *command)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming from {states[0].parent.relative_to(folder)}/" in resumed.stderr
