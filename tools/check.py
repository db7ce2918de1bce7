"""Check all of params.yaml: every section, every choice made, and the options of the choices not made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ldm import choices
from ldm.config import choice_fields, parse_options
from ldm.errors import InputError
from stages.cli import DAG, PARAMS, read_yaml, run_command
from stages.dag import stage_config


def check(path: Path, dag: Path) -> None:
    """Raises: InputError for the first thing that is wrong."""
    sections, stages = read_yaml(path), read_yaml(dag)["stages"]
    for name in sections.keys() ^ stages.keys():
        raise InputError(f"{path}: the section {name!r} is {'unknown' if name in sections else 'missing'}; wanted are {', '.join(stages)}")
    for name in stages:
        config = stage_config(name)
        parsed = config.parse(sections[name], f"{path}: {name}")
        for kind in choice_fields(config).values():
            for choice, options in getattr(parsed, kind).items():
                parse_options(kind, choice, options)
    check_together(path, sections)


def check_together(path: Path, sections: dict[str, dict[str, Any]]) -> None:
    """What no section can know alone: the sampler's levels exist, the classifiers differ, and there are enough samples to score."""
    train, sample, evaluate = (sections[name] for name in ("train_diffusion", "sample", "evaluate"))
    schedule = choices.build("schedules", train["schedule"], train["schedules"][train["schedule"]])
    spacing = choices.build("spacings", sample["spacing"], sample["spacings"][sample["spacing"]])
    try:
        spacing(schedule, sample["steps"])
    except InputError as error:
        raise InputError(f"{path}: sample.steps: {error}") from None
    first, second = (sections[f"train_{kind}"]["classifier"] for kind in ("classifier", "second_classifier"))
    if first == second:
        raise InputError(f"{path}: train_second_classifier.classifier: {second!r} is the first one's too; the second must be of another shape to check it")
    if sample.get("label") is not None:
        raise InputError(f"{path}: sample.label: {sample['label']} is one class, but the table compares with all; set null (by hand, --set label)")
    if sample["n"] < evaluate["n"]:
        raise InputError(f"{path}: sample.n: {sample['n']} samples are fewer than evaluate.n {evaluate['n']}; raise the one or lower the other")


@click.command(help=__doc__)
def command() -> None:
    check(PARAMS, DAG)


if __name__ == "__main__":
    run_command(command, "params")
