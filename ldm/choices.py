"""Choices that are one word in params.yaml: each lives in one file and is loaded by name.

A choice `name` of a kind (`schedules`, `samplers`, …) is the module `ldm/<kind>/<name>.py`.
It imports without torch and has
  - `Options`, the frozen class of its own parameters, and
  - `build(options, …)`, which returns the thing itself.
Layers that need torch at import live beside it, in `ldm/<kind>/<name>_model.py`.
Adding a choice means adding its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from ldm.errors import InputError


def known(kind: str) -> list[str]:
    """The names that a kind of choice has, sorted."""
    files = (Path(__file__).parent / kind).glob("[a-z]*.py")
    return sorted(f.stem for f in files if not f.stem.endswith("_model"))


def module(kind: str, name: str) -> ModuleType:
    """The module of one choice. Raises: InputError for an unknown name, with the known ones."""
    if name not in known(kind):
        raise InputError(f"unknown name {name!r} among the {kind}: known are {', '.join(known(kind))}")
    return import_module(f"ldm.{kind}.{name}")


def takes(kind: str, name: str, parameter: str) -> bool:
    """Whether what builds a choice has a parameter of this name."""
    return parameter in signature(module(kind, name).build).parameters


def build(kind: str, name: str, options: Mapping[str, Any], *args: Any) -> Any:
    """Build a choice from its plain options: `build("schedules", "linear", {"steps": 1000, …})`.

    Raises: InputError for an unknown name or bad options.
    """
    chosen = module(kind, name)
    return chosen.build(chosen.Options.parse(options, f"{kind}.{name}"), *args)
