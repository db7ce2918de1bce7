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
from ruamel.yaml import YAML

from ldm.artifacts import write_atomic
from ldm.errors import InputError
from stages import params
from stages.cli import DAG, PARAMS, read_yaml, run_command, with_settings
from stages.dag import ROOT, rewritten


def without(dag: dict[str, Any], name: str) -> None:
    """Take a stage out of a DAG, with its outputs wherever they are read, shown or scored. Raises: InputError for an unknown one."""
    stages = dag["stages"]
    if name not in stages:
        raise InputError(f"--without {name}: unknown stage; known are {', '.join(stages)}")
    gone = {str(path_of(out)) for out in stages.pop(name)["outs"]}
    gone |= {str(path_of(out)) for entry in stages.values() for out in entry["outs"] if is_about(out, name)}
    for entry in stages.values():
        entry["deps"] = [dep for dep in entry["deps"] if dep not in gone]
        entry["outs"] = [out for out in entry["outs"] if path_of(out) not in gone]
    dag["metrics"] = [path for path in dag.get("metrics", []) if path not in gone]
    dag["plots"] = [plot for plot in dag.get("plots", []) if not any(path in str(plot) for path in gone)]


def path_of(entry: Any) -> str:
    """The path of an output or plot, which may be a mapping from it to options."""
    return next(iter(entry)) if isinstance(entry, dict) else entry


def is_about(out: Any, name: str) -> bool:
    """Whether an output of another stage shows what the stage made: what is left without it does not write that."""
    return name == "train_vae" and Path(path_of(out)).stem in ("vae_prior", "vae_reconstruction", "reconstructions")


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--from", "source", type=click.Path(path_type=Path), default=Path(), help="Folder of the recipe to start from; the pipeline itself by default.")
@click.option("--without", "dropped", multiple=True, metavar="STAGE", help="Leave a stage out (repeatable).")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a parameter (repeatable).")
def command(folder: Path, source: Path, dropped: tuple[str, ...], settings: tuple[str, ...]) -> None:
    if folder.exists():
        raise InputError(f"{folder} exists already; choose another folder, or remove it")
    if ROOT not in folder.resolve().parents:
        raise InputError(f"{folder} lies outside the project; a recipe lives below {ROOT}, such as recipes/mine")
    for path in (source / DAG, source / PARAMS):
        read_yaml(path)  # the one-line errors
    yaml = YAML()  # keeps comments and anchors
    yaml.width = 200
    yaml.indent(mapping=2, sequence=4, offset=2)
    dag, values = (yaml.load((source / name).read_text("utf-8")) for name in (DAG, PARAMS))
    for name in dropped:
        without(dag, name)
        values.pop(name, None)
    data = values["prepare_data"]
    if not Path(data["root"]).is_absolute():
        data["root"] = os.path.relpath(source / data["root"], folder)
    with_settings(values, settings)
    folder.mkdir(parents=True)
    try:
        for name, content in ((DAG, dag), (PARAMS, values)):
            text = io.StringIO()
            yaml.dump(content, text)
            write_atomic(folder / name, text.getvalue().encode())
        write_atomic(folder / DAG, rewritten(folder / DAG, (folder / DAG).read_text("utf-8")).encode())
        params.check(folder / PARAMS, folder / DAG)
    except BaseException:
        for name in (DAG, PARAMS):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
        raise
    print(f"{folder} is ready: change its {PARAMS}, then run dvc repro {folder / DAG}")


if __name__ == "__main__":
    run_command(command, "new_recipe")
