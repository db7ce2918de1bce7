"""Start a recipe: a folder with the pipeline's params.yaml and dvc.yaml, changed as asked, to edit on.

python -m stages.new_recipe recipes/mine --set prepare_data.dataset=folder --set prepare_data.root=/my/images
python -m stages.new_recipe recipes/mine --from recipes/fashion_ddpm     from another recipe
python -m stages.new_recipe recipes/mine --without train_vae             pixels instead of latents
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import click

from ldm.errors import InputError
from stages import params
from stages.cli import DAG, PARAMS, optional_parameters, read_yaml, run_command, with_settings
from stages.dag import ROOT, rewritten, round_trip, stage_config

NEEDED = ("prepare_data", "train_diffusion", "sample", "evaluate")  # what a recipe to start from must have
OF_AUTOENCODER = ("vae_prior.json", "vae_reconstruction.json", "reconstructions.png")  # what other stages write of it


def without(dag: dict[str, Any], name: str) -> None:
    """Take a stage out of a DAG, with its outputs wherever they are shown; of the autoencoder, wherever they are read.

    Raises: InputError for an unknown stage, and for another one whose outputs are read.
    """
    stages = dag["stages"]
    if name not in stages:
        raise InputError(f"--without {name}: unknown stage; known are {', '.join(stages)}")
    gone = {path_of(out) for out in stages[name]["outs"]}
    readers = [other for other, entry in stages.items() if gone & set(entry["deps"])]
    if name == "train_vae":
        gone |= {path_of(out) for entry in stages.values() for out in entry["outs"] if Path(path_of(out)).name in OF_AUTOENCODER}
    elif readers or name in NEEDED:
        raise InputError(f"--without {name}: {', '.join(readers) or 'the table'} cannot do without it; of the stages that others read only train_vae can go")
    del stages[name]
    for entry in stages.values():
        entry["deps"] = [dep for dep in entry["deps"] if dep not in gone]
        entry["outs"] = [out for out in entry["outs"] if path_of(out) not in gone]
    dag["metrics"] = [path for path in dag.get("metrics", []) if path not in gone]
    dag["plots"] = [plot for plot in dag.get("plots", []) if not any(path in str(plot) for path in gone)]


def path_of(entry: Any) -> str:
    """The path of an output, which may be a mapping from it to options."""
    return next(iter(entry)) if isinstance(entry, dict) else entry


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--from", "source", type=click.Path(path_type=Path), default=ROOT, help="Folder of the recipe to start from; the pipeline itself by default.")
@click.option("--without", "dropped", multiple=True, metavar="STAGE", help="Leave a stage out (repeatable).")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a parameter (repeatable).")
def command(folder: Path, source: Path, dropped: tuple[str, ...], settings: tuple[str, ...]) -> None:
    from ldm.artifacts import write_atomic  # brings torch

    if folder.exists():
        raise InputError(f"{folder} exists already; choose another folder, or remove it")
    if folder.resolve().parent != ROOT / "recipes":
        raise InputError(f"{folder} is not a folder in {ROOT / 'recipes'}; a recipe lives there, such as recipes/mine")
    read_yaml(source / PARAMS)  # the one-line errors
    missing = [name for name in NEEDED if name not in read_yaml(source / DAG).get("stages", {})]
    if missing:
        raise InputError(f"--from {source}: it has no stage {missing[0]}, so it is not a pipeline to start from; take fashion_ddpm, or none for the pipeline")
    form = round_trip()
    dag, values = (form.load(source / file) for file in (DAG, PARAMS))
    for name in dropped:
        without(dag, name)
        values.pop(name, None)
    values["prepare_data"]["root"] = str(source.resolve() / values["prepare_data"]["root"])
    optional = {f"{name}.{key}" for name in values for key in optional_parameters(stage_config(name))}
    with_settings(values, settings, optional)
    if not any(setting.startswith("prepare_data.root=") for setting in settings) and "prepare_data.dataset=folder" in settings:
        raise InputError("--set prepare_data.dataset=folder: which one? Add --set prepare_data.root=FOLDER, which has one sub-folder of PNG images per class")
    root = Path(str(values["prepare_data"]["root"]))
    if not root.is_absolute() or ROOT in root.parents:  # a path from here, or one inside the project
        values["prepare_data"]["root"] = os.path.relpath(root.resolve(), folder)
    folder.mkdir(parents=True)
    try:
        for file, content in ((DAG, dag), (PARAMS, values)):
            text = io.StringIO()
            form.dump(content, text)
            write_atomic(folder / file, text.getvalue().encode())
        write_atomic(folder / DAG, rewritten(folder / DAG, (folder / DAG).read_text("utf-8")).encode())
        params.check(folder / PARAMS, folder / DAG)
    except BaseException:
        for file in (DAG, PARAMS):
            (folder / file).unlink(missing_ok=True)
        folder.rmdir()
        raise
    print(f"{folder} is ready: change its {PARAMS}, then run dvc repro {folder / DAG}")


if __name__ == "__main__":
    run_command(command, "new_recipe")
