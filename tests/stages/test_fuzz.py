"""Whatever a user writes into params.yaml, on a command line or into an artifact: it runs, or ends in one line."""

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_in
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as format_tensors

from ldm import artifacts
from ldm.errors import InputError
from ldm.networks.classifier import Classifier
from stages.runner import Run, read_yaml, run_command, stage
from tools import check

SECTIONS = read_yaml(ROOT / "params.yaml")
NAMES = list(SECTIONS)
STAGES = json.dumps({"stages": {name: {} for name in NAMES}})  # a dvc.yaml, as far as the parameters are concerned


def paths(values: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of nested mappings, as a path."""
    found = [prefix] if prefix else []
    for key, value in values.items() if isinstance(values, dict) else ():
        found += paths(value, (*prefix, key))
    return found


PATHS = paths(SECTIONS)
LEAVES = [path for path in PATHS if not any(other[: len(path)] == path and other != path for other in PATHS)]
# what a command line can carry
TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)
NASTY = ["", "..", "../../etc/passwd", "/dev/zero", "os", "__init__", "conv_model", "a\nb", "${x}", "../networks/unet"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    TEXT,
    st.sampled_from(NASTY),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=4
)
COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    "database": None,
    "derandomize": True,
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcome(main: Callable[[], None], capsys) -> tuple[int, str]:
    """Exit code and standard error of a command in this process; anything but a clean exit is raised."""
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    judge(code, error)
    return code, error


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


@pytest.fixture
def checked(folder, monkeypatch, capsys) -> Callable[[Any], tuple[int, str]]:
    """Write parameters, and check them as `make repro` does first: exit code and standard error."""
    monkeypatch.setattr("sys.argv", ["check", "--recipe", "."])
    (folder / "dvc.yaml").write_text(STAGES)

    def run(sections: Any) -> tuple[int, str]:
        text = json.dumps(sections)  # JSON is YAML, but for what is not a number
        text = re.sub(r"\bNaN\b", ".nan", re.sub(r"\bInfinity\b", ".inf", text))
        (folder / "params.yaml").write_text(text, "utf-8")
        return outcome(lambda: run_command(check.command, "check"), capsys)

    return run


def test_any_change_of_params(checked):
    """Of 500 changes at random most are refused: those that set nonsense, drop or rename what is needed."""
    codes: dict[str, list[int]] = {"set": [], "drop": [], "rename": []}

    @settings(max_examples=500, **COMMON)
    @given(path=st.sampled_from(PATHS), value=VALUES, how=st.sampled_from(["set", "set", "drop", "rename"]))
    def one(path, value, how):
        changed = mutated(SECTIONS, path, value, how)
        if changed != SECTIONS:
            codes[how].append(checked(changed)[0])

    one()
    refused = {how: of.count(2) / len(of) for how, of in codes.items()}
    assert {how: len(of) > 40 for how, of in codes.items()} == {"set": True, "drop": True, "rename": True}
    assert refused["set"] > 0.8, refused  # of a number's many values some will do
    assert refused["drop"] > 0.5, refused  # what has a default can be left out
    assert refused["rename"] > 0.98, refused  # an unknown key; text can hit upon a known one
    assert checked(SECTIONS)[0] == 0


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_what_is_no_value_at_all_is_always_refused(checked, path):
    """At every parameter: a mapping, a list of lists, a number that is none, and a wrong type."""
    key = ".".join(path)
    for value in ({"a": 1}, [[]], float("nan"), float("-inf"), -(2**70), "\N{SNOWMAN}"):
        if path == ("prepare_data", "root") and isinstance(value, str | int | float):
            continue  # the name of a folder may be any text, of which YAML reads some as a number
        code, error = checked(mutated(SECTIONS, path, value, "set"))
        assert code == 2, (key, value)
        assert path[0] in error
    code, error = checked(mutated(SECTIONS, path, f"{path[-1]}z", "rename"))
    assert code == 2, key
    assert path[0] in error


def test_any_text_as_params(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check", "--recipe", "."])
    (folder / "dvc.yaml").write_text(STAGES)
    attack = TEXT.map(lambda t: f"prepare_data: !!python/object/apply:os.system ['touch {t}']")

    @settings(max_examples=300, **COMMON)
    @given(text=st.text(max_size=200) | st.binary(max_size=200) | attack)
    @example(text="? ")  # a key that is no text
    @example(text="1: 2\na: 3\n")
    def one(text):
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        (folder / "params.yaml").write_bytes(raw)
        code, _ = outcome(lambda: run_command(check.command, "check"), capsys)
        assert code == 2
        assert sorted(p.name for p in folder.iterdir()) == ["dvc.yaml", "params.yaml"]

    one()


FLAGS = ["--set", "--in", "--out", "--params", "--section", "--device", "--save-every", "--processes", "--recipe"]
FLAGS += ["--until", "--no-resume", "--deterministic", "--help"]
PLAIN = ["cpu", "cuda:7", "out", "..", ".", "", "seed=1", "seed", "=", "x=y=z", "0", "-1", "nan", "images=/dev/zero"]
WORDS = st.one_of(
    st.sampled_from(FLAGS),
    st.sampled_from(PLAIN),
    st.builds(lambda path, value: f"{'.'.join(path[1:])}={value!r}", st.sampled_from(PATHS), SCALARS),
    TEXT,
)


def test_any_command_line(folder, monkeypatch, capsys):
    """The command line of every stage, with a run that does nothing; some are right ones, and most are not."""
    ran: list[Run[Any]] = []
    accepted: list[bool] = []
    before = {p: p.read_bytes() for p in (folder / "params.yaml", folder / "dvc.yaml")}

    @settings(max_examples=500, **COMMON)
    @given(name=st.sampled_from(NAMES), words=st.lists(WORDS, max_size=6))
    def one(name, words):
        ran.clear()
        monkeypatch.setattr("sys.argv", [name, *words])
        code, _ = outcome(stage(name, check.stage_config(name), ran.append, "A stage."), capsys)
        assert all(path.read_bytes() == data for path, data in before.items())
        assert not list(folder.rglob("*.safetensors"))
        assert not (ran and code)
        accepted.append(code == 0)

    one()
    share = sum(accepted) / len(accepted)
    assert 0.02 < share < 0.4, share


CONFIG = {"classifier": "conv", "classifiers": {"conv": {"width": 4}}, "shape": [1, 8, 8], "classes": 10}
META = {"meta": {"schema": 0, "kind": 0, "config": CONFIG, "lineage": {}}}
FEW = st.one_of(
    st.none(), st.booleans(), st.integers(-20, 20), st.floats(-9, 9), TEXT, st.lists(st.integers(-3, 9), max_size=4)
)


def test_any_forged_artifact(folder):
    """Metadata that somebody changed, and gave the right digest: the true network comes of it, or none."""
    weights = Classifier.from_config(CONFIG, CONFIG["shape"], 10).state_dict()
    artifacts.save(folder / "true.safetensors", "classifier", weights, CONFIG)
    true = artifacts.load(folder / "true.safetensors", "classifier")
    forged = folder / "forged.safetensors"
    refused: list[bool] = []

    @settings(max_examples=300, **COMMON)
    @given(
        path=st.sampled_from(paths(META)),
        value=st.recursive(FEW, lambda inner: st.dictionaries(TEXT, inner, max_size=2), max_leaves=3),
        how=st.sampled_from(["set", "drop", "rename"]),
    )
    def one(path, value, how):
        meta = {"schema": 1, "kind": "classifier", "config": CONFIG, "lineage": {}}
        changed = mutated({"meta": meta}, path, value, how).get("meta", value)
        if not isinstance(changed, dict) or changed == meta:
            return
        text = json.dumps(changed | {"digest": "0" * 64}, sort_keys=True, separators=(",", ":"))
        raw = format_tensors(true.tensors, {"ldm": text})
        digest = hashlib.sha256(raw).hexdigest().encode()
        forged.write_bytes(raw.replace(b"0" * 64, digest, 1))
        try:
            network = Classifier.from_artifact(artifacts.load(forged, "classifier"))
        except InputError:
            refused.append(True)
            return
        refused.append(False)
        torch.testing.assert_close(network.state_dict(), true.tensors)

    one()
    assert len(refused) > 200
    assert sum(refused) / len(refused) > 0.8  # what has no part in the network may change


@pytest.mark.slow
@pytest.mark.parametrize("i", range(10))
def test_a_sample_as_real_commands(folder, i):
    path = PATHS[i * len(PATHS) // 10]
    values = ["-1", "nan", "[]", "{a: 1}", "../../x", "'; rm -rf /'", "1e400", "!!python/name:os.system"]
    setting = f"{'.'.join(path[1:]) or 'seed'}={values[i % len(values)]}"
    command = ["python", "-m", f"stages.{path[0]}", "--set", setting, "--out", "out"]
    done = run_in(folder, *command, PYTHONPATH=str(ROOT))
    assert done.returncode == 2, done.stderr
    judge(2, done.stderr)
    line = done.stderr.splitlines()[-1]
    assert (path[-1] if path[1:] else "seed") in line  # and no file that this folder lacks
    assert "is missing" not in line
