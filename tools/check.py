"""Check params.yaml as a whole, and list the committed results that are older than their code, parameters or data.

\b
python -m tools.check                       params.yaml here, and every dvc.lock
python -m tools.check --recipe recipes/x    the parameters of a recipe alone
python -m tools.check --clean               remove the checkpoints of interrupted runs
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from dvc.repo import Repo

from ldm.config import Section
from ldm.errors import InputError
from stages.runner.checkpoints import FOLDER, ROOT
from stages.runner.command import run_command
from stages.runner.parameters import PARAMS, read_yaml
from stages.runner.run import DAG


def stage_config(name: str) -> type[Section]:
    """The configuration class of a stage."""
    return import_module(f"stages.{name}").Config


def stages_of(path: Path) -> list[str]:
    """The stages of a dvc.yaml that run a module of stages/ on a section of their own."""
    entries = read_yaml(path)["stages"]
    return [name for name in entries if (ROOT / "stages" / f"{name}.py").exists()]


def check_parameters(recipe: Path) -> None:
    """Raises: InputError for the first thing that is wrong in the parameters of a pipeline."""
    path, names = recipe / PARAMS, stages_of(recipe / DAG)
    sections = read_yaml(path)
    for name in sorted(sections.keys() ^ set(names)):
        problem = "unknown" if name in sections else "missing"
        raise InputError(f"{path}: the section {name!r} is {problem}; wanted are {', '.join(names)}")
    configs: dict[str, Any] = {name: stage_config(name).parse(sections[name], f"{path}: {name}") for name in names}
    check_together(path, configs)


def check_together(path: Path, configs: dict[str, Any]) -> None:
    """What no section can know alone: the sampler's levels exist, the classifiers differ, enough samples are scored."""
    sample, evaluate = configs["sample"], configs["evaluate"]
    try:
        sample.build("spacing")(configs["train_diffusion"].build("schedule"), sample.steps)
    except InputError as error:
        raise InputError(f"{path}: sample.steps: {error}") from None
    first, second = (configs[f"train_{kind}"].classifier for kind in ("classifier", "second_classifier"))
    if first == second:
        raise InputError(
            f"{path}: train_second_classifier.classifier: {second!r} is the first one's too; "
            "the second must be of another shape to check it"
        )
    if sample.label is not None:
        raise InputError(
            f"{path}: sample.label: {sample.label} is one class, but the table compares with all; "
            "set null (by hand, --set label)"
        )
    if sample.n < evaluate.n:
        raise InputError(
            f"{path}: sample.n: {sample.n} samples are fewer than evaluate.n {evaluate.n}; "
            "raise the one or lower the other"
        )


def stale_results() -> Iterator[str]:
    """A line for each locked stage whose code, parameters, data or committed outputs have changed since it ran.

    Data that are not here (`dvc pull` fetches them) say nothing.
    """
    absent = ("deleted", "not in cache")
    with Repo(str(ROOT)) as repo:
        for stage, changes in repo.status().items():
            reasons = []
            for change in changes:
                if isinstance(change, str):
                    reasons.append(change)
                    continue
                for paths in change.values():
                    reasons += [f"{path} {state}" for path, state in paths.items() if state not in absent]
            if reasons:
                yield f"{stage}: {'; '.join(reasons)}"


@click.command(help=__doc__)
@click.option("--recipe", type=Path, help="Check the parameters in this folder alone.")
@click.option("--clean", is_flag=True, help="Remove the checkpoints of interrupted runs.")
def command(recipe: Path | None, clean: bool) -> None:
    check_parameters(recipe or Path())
    if clean:
        shutil.rmtree(FOLDER, ignore_errors=True)
    if recipe is None:
        lines = list(stale_results())
        for line in lines:
            click.echo(line)
        click.echo(f"{len(lines)} committed results are stale")


if __name__ == "__main__":
    run_command(command, "check")
