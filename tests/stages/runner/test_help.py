"""`--help` of every command waits for no large library, and says all that can be set, with meaning and value."""

import json
import sys
from importlib import import_module
from typing import Any

import pytest
from conftest import ROOT, run_in
from pydantic import BaseModel

from ldm.config import choices_of
from stages.runner import read_section, read_yaml
from tools.check import stage_config

STAGES = list(read_yaml(ROOT / "dvc.yaml")["stages"])
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if "__main__" in path.read_text("utf-8"))
COMMANDS = {f"stages.{name}": [] for name in STAGES} | {f"tools.{name}": [] for name in TOOLS}
COMMANDS |= {
    "bench": [],
    "recipes.toys.toy": ["--section", "moons"],
    "recipes.sweep.sweep": [],
    "recipes.sweep.report": [],
}
SLOW = ("torch", "torchvision", "scipy", "sklearn", "matplotlib", "dvc", "mlxtend")
# runs the `--help` of all commands in one process; of each: exit code, what it printed, the slow libraries loaded
SCRIPT = f"""
import contextlib, io, json, runpy, sys
found = {{}}
for module, arguments in json.loads(sys.argv[1]).items():
    sys.argv[:] = [module, *arguments, "--help"]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code or 0
        except Exception as error:
            code = repr(error)
    found[module] = code, out.getvalue(), err.getvalue(), [name for name in {SLOW!r} if name in sys.modules]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helped() -> dict[str, list[Any]]:
    done = run_in(ROOT, sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(COMMANDS), COLUMNS="100")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def words(text: str) -> str:
    """Without line breaks, also those behind a hyphen, and indentation."""
    return " ".join(text.split()).replace("- ", "-")


@pytest.mark.parametrize("module", COMMANDS)
def test_help_waits_for_nothing(helped, module):
    code, shown, said, loaded = helped[module]
    assert (code, said) == (0, "")
    assert shown.startswith("Usage: ")
    assert "--help" in shown
    assert loaded == []


def expected(config: type[BaseModel], values: dict[str, Any], prefix: str = "") -> list[tuple[str, str, Any]]:
    """(name, meaning, value) of every parameter that a section can have, found by another way than the command's."""
    rows: list[tuple[str, str, Any]] = []
    registries = {registry.name: registry for registry in choices_of(config).values()}  # type: ignore[arg-type]
    for key, field in config.model_fields.items():
        if key in registries:
            for name in registries[key].functions:
                given = (values.get(key) or {}).get(name) or {}
                rows += expected(registries[key].options(name), given, f"{prefix}{key}.{name}.")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            rows += expected(field.annotation, values.get(key) or {}, f"{prefix}{key}.")
        else:
            value = values[key] if key in values else field.get_default(call_default_factory=True)
            rows.append((f"{prefix}{key}", field.description or "", value))
    return rows


SECTIONS = {f"stages.{name}": (ROOT / "params.yaml", name) for name in STAGES}
SECTIONS["recipes.toys.toy"] = (ROOT / "recipes/toys/params.yaml", "moons")
SECTIONS["recipes.sweep.sweep"] = (ROOT / "recipes/sweep/params.yaml", "sweep")


def config_of(module: str) -> type[BaseModel]:
    if module.startswith("stages."):
        return stage_config(module.removeprefix("stages."))
    return import_module(module).Config


@pytest.mark.parametrize("module", SECTIONS)
def test_help_lists_every_option_of_every_choice_with_its_value(helped, module):
    path, name = SECTIONS[module]
    shown = words(helped[module][1])
    rows = expected(config_of(module), read_section(path, name))
    assert rows or name in ("export", "report")
    for key, meaning, value in rows:
        assert f" {key} = {value if isinstance(value, str) else json.dumps(value)} " in shown, key
        assert meaning, key
        assert words(meaning) in shown, key
    assert f"(section {name} of {path.relative_to(ROOT)})" in shown
    for registry in choices_of(config_of(module)).values():  # type: ignore[arg-type]
        assert f"({', '.join(sorted(registry.functions))})" in shown


@pytest.mark.parametrize(
    ("module", "row"),
    [
        ("train_diffusion", "networks.unet.multipliers = [1, 1] list of int ≥ 1 and ≤ 10**9, length ≥ 1: "),
        ("train_diffusion", "optimisation.betas = [0.9, 0.99] list of 2 float ≥ 0 and < 1:"),
        ("prepare_data", "min_per_class = null int ≥ 1 and ≤ 10**9 or null: "),
        ("sample", "seed = 0 int, ≥ 0, < 2**63: "),
        ("sample", "n = 10000 int, ≥ 1, ≤ 10**9: "),
        ("train_vae", "likelihood = bernoulli bernoulli or gaussian or laplace: "),
    ],
)
def test_help_says_the_range(helped, module, row):
    assert row in words(helped[f"stages.{module}"][1])


def test_what_the_test_above_looks_for():
    """A few of the rows, by hand."""
    rows = {
        key: value for key, _, value in expected(stage_config("sample"), read_section(ROOT / "params.yaml", "sample"))
    }
    assert rows["samplers.ddim.eta"] == 0.0
    assert rows["spacings.karras.rho"] == 7.0
    assert rows["guidance.weight"] == 1.2
    assert rows["label"] is None


def test_another_folder_and_section(tmp_path):
    """The values are those of the section asked for."""
    for file in ("params.yaml", "dvc.yaml"):
        text = (ROOT / file).read_text("utf-8").replace("kl_weight: 0.02", "kl_weight: 0.5")
        (tmp_path / file).write_text(text, "utf-8")
    command = [sys.executable, "-m", "stages.train_vae", "--recipe", str(tmp_path), "--help"]
    shown = run_in(ROOT, *command, COLUMNS="200").stdout
    assert "kl_weight = 0.5" in shown
    assert "section train_vae of" in shown
