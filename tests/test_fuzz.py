"""Whatever a user writes into params.yaml, on a command line or into an artifact: it runs, or ends in exit code 2 and one line."""

import copy
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as format_tensors

from ldm import artifacts
from ldm.classifier import Classifier
from ldm.errors import InputError
from stages import dag, params
from stages.cli import Job, read_yaml, run_command, stage

SECTIONS = read_yaml(ROOT / "params.yaml")
NAMES = list(SECTIONS)


def paths(values: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of nested mappings, as a path."""
    found = [prefix] if prefix else []
    for key, value in values.items() if isinstance(values, dict) else ():
        found += paths(value, (*prefix, key))
    return found


PATHS = paths(SECTIONS)
TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)  # what a command line can carry
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    TEXT,
    st.sampled_from(["", "..", "../../etc/passwd", "/dev/zero", "os", "__init__", "conv_model", "a\nb", "${x}", "../networks/unet"]),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=4)
COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow], "database": None, "derandomize": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("fuzz")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, target)
    return target


def outcome(main, capsys) -> tuple[int, str]:
    """Exit code and standard error of a command in this process; anything but a clean exit is raised."""
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err


def judge(code: int, error: str) -> None:
    assert code in (0, 2)
    if code == 2:
        lines = [line for line in error.splitlines() if "warning: " not in line]
        assert len(lines) == 1, error


def mutated(values: Any, path: tuple[str, ...], value: Any, how: str) -> Any:
    """A copy in which the value at a path is set, dropped or renamed."""
    changed = copy.deepcopy(values)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if how == "set":
        place[path[-1]] = value
    else:
        old = place.pop(path[-1])
        if how == "rename":
            place[str(value)] = old
    return changed


@settings(max_examples=600, **COMMON)
@given(path=st.sampled_from(PATHS), value=VALUES, how=st.sampled_from(["set", "set", "drop", "rename"]))
def test_any_change_of_params(folder, monkeypatch, capsys, path, value, how):
    text = json.dumps(mutated(SECTIONS, path, value, how))  # JSON is YAML, but for what is not a number
    text = re.sub(r"\bNaN\b", ".nan", re.sub(r"\bInfinity\b", ".inf", text))
    (folder / "params.yaml").write_text(text, "utf-8")
    (folder / "dvc.yaml").write_text(json.dumps({"stages": {name: {} for name in NAMES}}))
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["params"])
    judge(*outcome(lambda: run_command(params.command, "params"), capsys))


@settings(max_examples=500, **COMMON)
@given(text=st.text(max_size=200) | st.binary(max_size=200) | TEXT.map(lambda t: f"prepare_data: !!python/object/apply:os.system ['touch {t}']"))
def test_any_text_as_params(folder, monkeypatch, capsys, text):
    (folder / "params.yaml").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["params"])
    code, error = outcome(lambda: run_command(params.command, "params"), capsys)
    judge(code, error)
    assert code == 2
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == ["dvc.yaml", "params.yaml"]


FLAGS = ["--set", "--in", "--out", "--params", "--section", "--device", "--save-every", "--processes", "--fresh", "--deterministic", "--help"]
WORDS = st.one_of(
    st.sampled_from(FLAGS),
    st.sampled_from(["cpu", "cuda:7", "out", "..", "", "seed=1", "seed", "=", "x=y=z", "0", "-1", "nan", "images=/dev/zero"]),
    st.builds(lambda path, value: f"{'.'.join(path[1:])}={value!r}", st.sampled_from(PATHS), SCALARS),
    TEXT,
)


@settings(max_examples=700, **COMMON)
@given(name=st.sampled_from(NAMES), words=st.lists(WORDS, max_size=6))
def test_any_command_line(folder, monkeypatch, capsys, name, words):
    """The command line of every stage, with a run that does nothing."""
    for file in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / file, folder)
    ran: list[Job] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [name, *words])
    before = {p: p.read_bytes() for p in (folder / "params.yaml", folder / "dvc.yaml")}
    judge(*outcome(stage(name, dag.stage_config(name), ran.append, "A stage."), capsys))
    assert all(path.read_bytes() == data for path, data in before.items())
    assert not list(folder.rglob("*.safetensors"))
    ACCEPTED.append(bool(ran))


ACCEPTED: list[bool] = []  # whether a command line was a right one


def test_some_of_those_command_lines_were_right():
    assert 0 < sum(ACCEPTED) < len(ACCEPTED)


CONFIG = {"classifier": "conv", "classifiers": {"conv": {"width": 4}}, "shape": [1, 8, 8], "classes": 10}
SMALL = st.one_of(st.none(), st.booleans(), st.integers(-20, 20), st.floats(-9, 9), TEXT, st.lists(st.integers(-3, 9), max_size=4))


@settings(max_examples=300, **COMMON)
@given(
    path=st.sampled_from([*paths({"meta": {"schema": 0, "kind": 0, "config": CONFIG, "lineage": {}}})]),
    value=st.recursive(SMALL, lambda inner: st.dictionaries(TEXT, inner, max_size=2), max_leaves=3),
    how=st.sampled_from(["set", "drop", "rename"]),
)
def test_any_forged_artifact(folder, path, value, how):
    """Metadata that somebody changed, and gave the right digest."""
    weights = Classifier.from_config(CONFIG, CONFIG["shape"], 10).state_dict()
    artifacts.save(folder / "true.safetensors", "classifier", weights, CONFIG)
    true = artifacts.load(folder / "true.safetensors", "classifier")
    meta = {"schema": 1, "kind": "classifier", "config": CONFIG, "lineage": {}}
    changed = mutated({"meta": meta}, path, value, how).get("meta", value)
    if not isinstance(changed, dict):
        return
    text = json.dumps(changed | {"digest": "0" * 64}, sort_keys=True, separators=(",", ":"))
    raw = format_tensors(true.tensors, {"ldm": text})
    digest = hashlib.sha256(raw).hexdigest().encode()
    (folder / "forged.safetensors").write_bytes(raw.replace(b"0" * 64, digest, 1))
    try:
        network = Classifier.from_artifact(artifacts.load(folder / "forged.safetensors", "classifier"))
    except InputError:
        return
    torch.testing.assert_close(network.state_dict(), true.tensors)


@pytest.mark.slow
@pytest.mark.parametrize("i", range(50))
def test_a_sample_as_real_commands(folder, i):
    for file in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / file, folder)
    path = PATHS[i * len(PATHS) // 50]
    values = ["-1", "nan", "[]", "{a: 1}", "../../x", "'; rm -rf /'", "1e400", "!!python/name:os.system"]
    setting = f"{'.'.join(path[1:]) or 'seed'}={values[i % len(values)]}"
    done = run_in(folder, "python", "-m", f"stages.{path[0]}", "--set", setting, "--out", "out", PYTHONPATH=str(ROOT))
    assert done.returncode == 2, done.stderr
    judge(2, done.stderr)
