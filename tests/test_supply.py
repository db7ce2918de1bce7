"""The supply chain: what is imported is declared, what is declared is used, and all of it has an exact version."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions

from conftest import ROOT
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BY_COMMAND = {"dvc", "mypy", "pytest-xdist", "ruff"}  # used as programs
TYPES = {"scipy-stubs"}  # used by mypy


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", r)[0].lower() for r in requirements}


def imported(*folders: str) -> Iterator[str]:
    """The distributions of all modules that the files of some folders import."""
    distributions = packages_distributions()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                found = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                for top in {name.partition(".")[0] for name in found if not getattr(node, "level", 0)}:
                    if top not in sys.stdlib_module_names | OWN:
                        yield from {d.lower() for d in distributions.get(top, [f"{top}, of no distribution"])[:1]}


OWN = {"bench", "ldm", "recipes", "stages", "tools", "", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
USED, DEV, BENCH = (
    names(PROJECT["dependencies"]),
    *(names(PROJECT["optional-dependencies"][extra]) for extra in ("dev", "bench")),
)


def test_the_project_imports_what_it_declares():
    lazily = re.findall(r"LazyModule\(\"(\w+)", (ROOT / "ldm/lazy.py").read_text())
    used = set(imported("ldm", "stages", "tools", "recipes")) | (USED & set(lazily))
    assert used - USED == set()
    assert USED - used - BY_COMMAND == set()


def test_the_tests_import_what_is_declared_for_them():
    used = set(imported("tests"))
    assert used - USED - DEV == set()
    assert DEV - used - BY_COMMAND - TYPES == set()


def test_the_benchmark_imports_what_is_declared_for_it():
    distribution = {
        "denoising_diffusion_pytorch": "denoising-diffusion-pytorch",
        "ema_pytorch": "ema-pytorch",
    }  # if not installed
    used = {distribution.get(name.partition(",")[0], name) for name in imported("bench")}
    assert used - USED - BENCH == set()
    assert BENCH - used == set()


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_version_is_exact():
    """Names and versions only, and all that the project needs is among them, whatever version is installed here."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.+!-]*", line) for line in lines)
    pinned = {plain(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert len(pinned) == len(lines)
    waiting, needed = [PROJECT["name"]], set()
    while waiting:  # all that the project needs here; what else is installed is its owner's
        found = distribution(waiting.pop())
        for line in found.requires or []:
            requirement = Requirement(line)
            extras = ("", "dev") if plain(found.metadata["Name"]) == PROJECT["name"] else ("",)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
                name = plain(requirement.name)
                if name not in needed:
                    needed.add(name)
                    waiting.append(requirement.name)
    assert len(needed) > 50
    assert needed - pinned.keys() == set()
