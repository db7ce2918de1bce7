"""Write the lists of dvc.yaml, and of the recipes': the modules and the parameters that each stage uses.

    python -m stages.dag           writes them
    python -m stages.dag --check   only says whether they are right (exit code 2 if not)

A stage depends on every module that it imports, transitively, and on the chosen module of every
kind of choice that these build by name (`ldm/networks/${train_diffusion.network}.py`), where the
choice is the stage's own or that of a stage whose artifact it reads. What any
choice of a kind imports counts for all of them, so the lists hold whatever is chosen. A stage over
a matrix of sections depends on the modules that any section of its params.yaml chooses.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from ldm import choices
from ldm.config import Section, choice_fields
from ldm.errors import InputError
from stages.cli import DAG, PARAMS, read_yaml, run_command

ROOT = Path(__file__).resolve().parent.parent


def stage_config(name: str) -> type[Section]:
    """The configuration class of a stage."""
    return import_module(f"stages.{name}").Config


def owners(stages: Iterable[str]) -> dict[str, list[str]]:
    """Kind of choice → the parameters that make it, such as networks → ${train_diffusion.network}."""
    found: dict[str, list[str]] = {}
    for name in stages:
        for word, kind in choice_fields(stage_config(name)).items():
            found.setdefault(kind, []).append(f"${{{name}.{word}}}")
    return found


def mentioned(configs: list[type[Section]], params: Any) -> dict[str, list[str]]:
    """Kind of choice → the names that any section of a parameter file chooses, for stages over a matrix of sections."""
    sections = [section for config in configs for section in (config, *_sections_in(config))]
    words = {word: kind for section in sections for word, kind in choice_fields(section).items()}
    names: dict[str, set[str]] = {kind: set() for kind in words.values()}
    waiting = [params]
    while waiting:
        for key, value in waiting.pop().items():
            if isinstance(value, dict):
                waiting.append(value)
            elif key in words:
                names[words[key]].add(value)
    return {kind: sorted(chosen) for kind, chosen in names.items()}


def _sections_in(config: type[Section]) -> list[type[Section]]:
    return [f.annotation for f in config.model_fields.values() if isinstance(f.annotation, type) and issubclass(f.annotation, Section)]


def code_of(stage: str, names: dict[str, list[str]]) -> list[str]:
    """The files a stage depends on, sorted, given the names (or templates of them) chosen of each kind."""
    files, kinds = closure(ROOT / "stages" / f"{stage}.py")
    plain = {str(f.relative_to(ROOT)) for f in files if f.parent.parent != ROOT / "ldm"}
    chosen = set()
    for kind in kinds:
        has_models = any((ROOT / "ldm" / kind).glob("*_model.py"))
        chosen |= {f"ldm/{kind}/{name}{end}.py" for name in names.get(kind, []) for end in ("", "_model")[: 1 + has_models]}
    return sorted(plain) + sorted(chosen)


def params_of(name: str) -> list[str]:
    """The parameters of a stage: its section, or the keys of it with the options of the choices made."""
    config = stage_config(name)
    word = {kind: word for word, kind in choice_fields(config).items()}
    if not word:
        return [name]
    return [f"{name}.{key}.${{{name}.{word[key]}}}" if key in word else f"{name}.{key}" for key in config.model_fields]


def closure(start: Path) -> tuple[set[Path], set[str]]:
    """Every file imported from `start` on, and every kind of choice built by name."""
    files, kinds, waiting = set(), set(), [start]
    while waiting:
        file = waiting.pop()
        if file in files:
            continue
        files.add(file)
        imported, built = read_module(file)
        kinds |= built
        waiting += imported
        for kind in built:
            waiting += sorted((ROOT / "ldm" / kind).glob("[a-z]*.py"))
    return files, kinds


@cache
def read_module(file: Path) -> tuple[list[Path], set[str]]:
    """The project's files that a module imports at run time, and the kinds of choice that its calls name."""
    imported: list[Path] = []
    kinds: set[str] = set()
    known = {p.name for p in (ROOT / "ldm").iterdir() if p.is_dir() and choices.known(p.name)}
    for node in run_time_nodes(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            if isinstance(node, ast.Call):
                kinds |= {a.value for a in node.args if isinstance(a, ast.Constant) and a.value in known}
            continue
        for name in names:
            imported += files_of_module(name)
    return imported, kinds


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield node
            yield from run_time_nodes(node)


def files_of_module(name: str) -> list[Path]:
    """A dotted name of this project → its file and the packages it lies in; none for other names."""
    parts = name.split(".")
    if parts[0] not in ("ldm", "stages"):
        return []
    packages = [ROOT.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)]
    return [p for p in [*packages, ROOT.joinpath(*parts).with_suffix(".py")] if p.is_file()]


def round_trip() -> YAML:
    """YAML that keeps comments and anchors as they stand, and builds plain data only, whatever tags say."""
    form = YAML(typ="rt")
    form.width = 200
    form.indent(mapping=2, sequence=4, offset=2)
    return form


def rewritten(file: Path, text: str) -> str:
    """The text of a dvc.yaml with its lists as they should be; everything else stays."""
    up = "../" * len(file.resolve().parent.relative_to(ROOT).parts)
    form = round_trip()
    dag: dict[str, Any] = form.load(text)
    # a recipe that reads the pipeline's params.yaml goes on from the pipeline's choices
    pipeline = read_yaml(ROOT / DAG)["stages"] if "vars" in dag else dag["stages"]
    modules = {key: found[1] for key, entry in dag["stages"].items() if (found := re.search(r"-m stages\.(\w+)", entry["cmd"]))}
    for key, name in modules.items():  # a command of the user's own stays as it is
        entry = dag["stages"][key]
        config, matrix = stage_config(name), entry.get("matrix", {})
        words = choice_fields(config)
        data = [d for d in entry["deps"] if not d.endswith(".py")]
        # what another stage chose is built from that stage's artifact
        names = owners(sorted({Path(d).parent.name for d in data} & pipeline.keys())) | owners([name])
        if not matrix:
            entry["params"] = params_of(name)
        elif not matrix.keys() & config.model_fields.keys():  # over sections of params.yaml
            names |= mentioned([stage_config(other) for other in modules.values()], read_yaml(file.with_name(PARAMS.name)))
        names |= {words[word]: [f"${{item.{word}}}"] for word in matrix if word in words}
        tables = [kind for kind in config.model_fields if choices.known(kind) and kind not in words.values()]
        names |= {kind: sorted(read_yaml(file.with_name(PARAMS.name))[name][kind]) for kind in tables}  # all of a table, none chosen
        entry["deps"] = data + [up + path for path in code_of(name, names)]
    out = io.StringIO()
    form.dump(dag, out)
    return out.getvalue()


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Change nothing; fail when a list is wrong.")
def command(check: bool) -> None:
    from ldm.artifacts import write_atomic  # brings torch

    for file in [ROOT / DAG, *sorted(ROOT.glob("recipes/*/dvc.yaml"))]:
        shown, text = file.relative_to(ROOT), file.read_text("utf-8")
        wanted = rewritten(file, text)
        if wanted == text:
            print(f"{shown} is up to date")
        elif check:
            wrong = sorted({line.strip() for line in set(text.splitlines()) ^ set(wanted.splitlines())})
            raise InputError(f"{shown} is out of date, for example in {wrong[0]!r}; run python -m stages.dag")
        else:
            write_atomic(file, wanted.encode())
            print(f"{shown} written")


if __name__ == "__main__":
    run_command(command, "dag")
