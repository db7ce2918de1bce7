"""Check params.yaml as a whole, and list the committed results that are older than their code, parameters or data.

\b
python -m tools.check                       params.yaml here, and every dvc.lock
python -m tools.check --recipe recipes/x    the parameters of a recipe alone
python -m tools.check --clean               remove all checkpoints, also those of runs at work
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ldm import InputError, Section, diffusion, sampling
from ldm.lazy import torch
from stages.runner import FOLDER, PARAMS, ROOT, read_yaml, run_command, stages_of

SHOWN = 5  # how many reasons a line names


def stage_config(name: str) -> type[Section]:
    """The configuration class of a stage."""
    return import_module(f"stages.{name}").Config


def check_parameters(recipe: Path) -> None:
    """Raises: InputError for the first mistake in the parameters of the pipeline, or of a recipe like it."""
    path, stages, sections = recipe / PARAMS, stages_of(recipe), read_yaml(recipe / PARAMS)
    if any("matrix" in entry for entry in stages.values()):
        raise InputError(f"{recipe}: its stages run over a matrix; each checks its own parameters when it starts")
    names = [name for name in stages if (ROOT / "stages" / f"{name}.py").exists()]
    for name in sorted(sections.keys() ^ set(names), key=str):
        problem = "unknown" if name in sections else "missing"
        raise InputError(f"{path}: the section {name!r} is {problem}; wanted are {', '.join(names)}")
    configs: dict[str, Any] = {name: stage_config(name).parse(sections[name], f"{path}: {name}") for name in names}
    kinds = [config.classifier for config in configs.values() if hasattr(config, "classifier")]
    if len(kinds) > len(set(kinds)):
        raise InputError(f"{path}: train_second_classifier.classifier: {kinds[1]!r} is the first one's; choose another")
    if not configs.keys() >= {"train_diffusion", "sample", "evaluate"}:
        return
    evaluate, training = configs["evaluate"], configs["train_diffusion"]
    if not evaluate.final or evaluate.row != "all":
        word = "row" if evaluate.final else "final"
        raise InputError(f"{path}: evaluate.{word}: dvc.yaml lists all rows; leave it out, and set it by hand (--out)")
    if training.flip and "train_vae" in stages:
        raise InputError(f"{path}: train_diffusion.flip: latents of an autoencoder cannot be mirrored; set 0")
    check_together(configs, str(path))


def check_together(configs: Mapping[str, Any], where: str) -> None:
    """Raises: InputError for what only train_diffusion, sample and evaluate together show to be wrong."""
    sample, evaluate, training = configs["sample"], configs["evaluate"], configs["train_diffusion"]
    schedule, sampler = training.build("schedule"), sample.build("sampler")
    try:
        sigmas = sample.build("spacing")(schedule, sample.steps)
    except InputError as error:
        raise InputError(f"{where}: sample.steps: {error}") from None
    network: Any = torch.add  # any function of x and t will do, to see whether the sampler can
    denoiser = diffusion.Denoiser(network, schedule, training.build("prediction"))
    try:
        sampling.check_sampler(sampler, schedule, sigmas)
        sampling.last_state(sampling.states(denoiser, sampler, sigmas, partial(torch.zeros, 1, 1, 1, 1)))
    except InputError as error:
        raise InputError(f"{where}: sample.sampler: {error}") from None
    if sample.label is not None:
        raise InputError(f"{where}: sample.label: {sample.label} is one class, but the table is of all; set null")
    if sample.n < evaluate.n:
        raise InputError(f"{where}: sample.n: {sample.n} is fewer than evaluate.n {evaluate.n}; raise it or lower that")


def stale_results() -> Iterator[str]:
    """A line for each locked stage whose code, parameters, data or committed outputs have changed since it ran.

    Data that are missing here do not count as changed: `dvc pull` fetches them.
    """
    for stage, changes in changed_stages():
        reasons = [f"{path} {state}" for path, state in changes if state not in ("deleted", "not in cache")]
        more = f" and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        if reasons:
            yield f"{stage}: {'; '.join(reasons[:SHOWN])}{more}"


def changed_stages() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """What `dvc status` says of each stage that has run: its name, and what has changed, how. Raises: InputError."""
    from dvc import exceptions, repo  # DVC takes a second to import, for which --help should not wait

    try:
        with contextlib.chdir(ROOT), repo.Repo() as project, project.lock:  # DVC names stages from where it stands
            ran = [stage for stage in project.index.stages if any(file.hash_info for file in stage.deps + stage.outs)]
            status = [item for stage in ran for item in stage.status().items()]
    except exceptions.DvcException as error:
        raise InputError(f"DVC cannot tell what has changed: {error}") from None
    for stage, changes in status:
        groups = [group for change in changes if isinstance(change, dict) for group in change.values()]
        # DVC says of a stage without outputs that it is always changed
        words = [(change, "") for change in changes if isinstance(change, str) and change != "always changed"]
        yield stage, words + [(path, str(state)) for group in groups for path, state in group.items()]


@click.command(help=__doc__)
@click.option("--recipe", type=Path, help="Check the parameters in this folder, and nothing else.")
@click.option("--clean", is_flag=True, help="Remove all checkpoints and last good weights.")
def command(recipe: Path | None, clean: bool) -> None:
    if clean:
        stages_of(recipe or Path())  # elsewhere, what is called checkpoints is not ours
        for entry in FOLDER.iterdir() if FOLDER.exists() else ():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        click.echo(f"the checkpoints in {FOLDER.resolve()} are removed")
    check_parameters(recipe or Path())
    if recipe is None:
        lines = list(stale_results())
        click.echo("\n".join([*lines, f"{len(lines)} committed results are stale"]))


if __name__ == "__main__":
    run_command(command, "check")
