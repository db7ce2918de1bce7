"""One run of a stage: its configuration and its files."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ldm import Artifact, InputError, Section, artifacts
from ldm.lazy import Tensor
from stages.runner.parameters import PARAMS, read_yaml

C = TypeVar("C", bound=Section)
Files = dict[str, Path]
DAG = Path("dvc.yaml")


@dataclass(frozen=True)
class Run(Generic[C]):
    """One run of a stage: its configuration, the files that it reads and writes, and the device."""

    name: str
    config: C
    inputs: Files  # by file stem, which for an artifact is its kind
    outputs: Files  # by file name
    device: str
    save_every: float = 60.0  # seconds between two checkpoints
    resume: bool = True  # whether to go on from an earlier run's checkpoint
    recipe: Path = Path()  # the folder of dvc.yaml
    params: Path = PARAMS  # the file that the configuration is a section of
    out: Path | None = None  # where a run by hand writes
    until: float | None = None  # seconds after which a training ends, in place of its number of steps
    facts: dict[str, Any] = field(default_factory=dict)  # what artifacts say of the run besides the configuration
    notes: dict[str, Any] = field(default_factory=dict)  # what the log says besides

    @property
    def device_type(self) -> str:
        """cpu or cuda, without a number."""
        return self.device.partition(":")[0]

    def load(self, kind: str) -> Artifact:
        """Read an input artifact. Raises: InputError."""
        return artifacts.load(self.inputs[kind], kind)

    def load_all(self) -> dict[str, Artifact]:
        """Read every input artifact of the stage, by kind. Raises: InputError unless they belong together."""
        loaded = {kind: self.load(kind) for kind in self.inputs}
        artifacts.merge_lineage(list(loaded.values()))
        return loaded

    def save(self, kind: str, tensors: dict[str, Tensor], parents: Sequence[Artifact] = (), **config: Any) -> Artifact:
        """Write the output artifact of a kind, and read it back.

        parents: the artifacts that it was computed from. Its configuration is the resolved section, the type of the
        device, and `config`.
        """
        path = self.outputs[f"{kind}.safetensors"]
        about = self.config.resolved() | {"device": self.device_type} | self.facts | config
        artifacts.save(path, kind, tensors, about, parents)
        _previous(path).unlink(missing_ok=True)
        return artifacts.load(path, kind)

    def set_aside(self) -> None:
        """Rename the tensors that an earlier run has left, beside which this run's other files would be wrong."""
        for path in self.outputs.values():
            if path.suffix == ".safetensors" and path.exists() and path not in self.inputs.values():
                path.replace(_previous(path))
                print(f"{self.name}: until the run ends, {path} is {_previous(path).name}", file=sys.stderr)

    def write(self, file: str, data: bytes) -> None:
        """Write another output, by its file name."""
        artifacts.write_atomic(self.outputs[file], data)

    def write_json(self, file: str, values: Any, digits: int = 17) -> None:
        """Write a JSON file, by its file name; its fractions to so many significant digits, of which 17 are all."""
        values = json.loads(json.dumps(values), parse_float=lambda text: float(f"{float(text):.{digits}g}"))
        self.write(file, json.dumps(values, indent=1).encode())


def _previous(path: Path) -> Path:
    return path.with_name(f"previous.{path.name}")


def files_of(name: str, recipe: Path, sources: Sequence[str] = (), out: Path | None = None) -> tuple[Files, Files]:
    """The data files of a stage as the dvc.yaml of a recipe states them: inputs by stem, outputs by file name.

    Data lie in folders called artifacts, or are safetensors files in one that a variable names; the other dependencies
    are code. Raises: InputError where dvc.yaml lacks the stage, or a source has an unknown name.
    """
    entry = stages_of(recipe).get(name)
    if entry is None:
        raise InputError(f"{recipe / DAG} has no stage {name!r}")
    base = Path(os.path.normpath(recipe / entry.get("wdir", ".")))
    deps = [Path(dep) for dep in entry.get("deps", [])]
    inputs = {dep.stem: base / dep for dep in deps if "artifacts" in dep.parts or dep.suffix == ".safetensors"}
    for source in sources:
        key, _, path = source.partition("=")
        if key not in inputs or not path:
            raise InputError(f"--in {source!r}: write NAME=PATH, where NAME is one of {', '.join(inputs) or 'none'}")
        inputs[key] = Path(path)
    outs = [path_of(out) for out in entry.get("outs", [])]
    return inputs, {Path(file).name: out / Path(file).name if out else base / file for file in outs}


def stages_of(recipe: Path) -> dict[str, dict[str, Any]]:
    """The stages in the dvc.yaml of a folder, by name. Raises: InputError for anything else than mappings."""
    stages = read_yaml(recipe / DAG).get("stages") or {}
    if not isinstance(stages, dict) or not all(isinstance(entry, dict) for entry in stages.values()):
        raise InputError(f"{recipe / DAG}: stages must be a mapping of names to mappings, each with cmd, deps and outs")
    return stages


def path_of(entry: Any) -> str:
    """The path of an entry of `outs` in dvc.yaml, which is the path alone or a mapping {path: options}."""
    return next(iter(entry)) if isinstance(entry, dict) else entry


def warn(name: str, message: str | None) -> None:
    """A warning on standard error, one line; None says nothing."""
    if message:
        print(f"{name}: warning: {message}", file=sys.stderr)
