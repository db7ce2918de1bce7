"""Start a recipe: a new folder with copies of the pipeline's params.yaml and dvc.yaml, changed as the options say.

\b
python -m tools.new_recipe recipes/mine --set prepare_data.dataset=folder --set prepare_data.root=/my/images
python -m tools.new_recipe recipes/mine --from recipes/fashion_ddpm     from another recipe
python -m tools.new_recipe recipes/mine --without train_vae             pixels instead of latents
"""

import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from ldm import InputError, data, networks
from stages import prepare_data, train_diffusion
from stages.runner import DAG, PARAMS, ROOT, path_of, read_section, run_command, stages_of, track, with_settings
from tools.check import check_parameters

SHAPES = dict.fromkeys(("cifar10", "cifar100", "svhn"), (3, 32, 32))  # (C, H, W) of the sets that differ from MNIST
MNIST = (1, 28, 28)
COLOUR = ["train_vae.likelihood=gaussian", "train_vae.kl_weight=0.2", "train_vae.scaled=0.0"]
NETWORK, OPTIMISATION = "train_diffusion.networks.unet", "train_diffusion.optimisation"
EPOCHS, FEWEST_STEPS = 300, 1000  # after more of them the emoji's validation loss rose
OFTEN, DROPOUT = 100, 0.1  # a U-Net whose training sees each picture more often than that takes dropout
NEEDED = ("prepare_data", "train_diffusion", "sample", "evaluate")  # stages that a recipe to start from must have
OPTIONAL = ("train_vae", "memorisation", "export", "report")  # stages that can be left out
OF_AUTOENCODER = {"vae_prior.json", "reconstruction.json", "reconstructions.png"}  # outputs of other stages


def without(dag: dict[str, Any], name: str) -> None:
    """Take a stage out of a DAG (the contents of a dvc.yaml), and its outputs out of the metrics and plots.

    Of those in OPTIONAL, other stages read the output of train_vae alone: they then work on pixels. What these write of
    the autoencoder goes too. The report shows what is left. Raises: InputError where there is no such stage.
    """
    if name not in dag["stages"]:
        raise InputError(f"--without {name}: there is no such stage; known are {', '.join(dag['stages'])}")
    gone = map(path_of, dag["stages"].pop(name).get("outs", []))
    places = {path[path.index("artifacts/") :] for path in gone}  # relative to dvc.yaml, as metrics and plots are
    places |= OF_AUTOENCODER if name == "train_vae" else set()
    for part in (dag, *dag["stages"].values()):
        for key in part.keys() & {"deps", "outs", "metrics", "plots"}:
            part[key] = [item for item in part[key] if not any(path in str(item) for path in places)]


def make_recipe(dag: dict[str, Any], target: str) -> None:
    """Make the pipeline's DAG that of a recipe with its data in the folder `target`; it runs in the project's root."""

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {move(key): inner for key, inner in value.items()}
        return f"{target}/{value}" if value.startswith("artifacts/") else value

    for name, entry in dag["stages"].items():
        entry |= {"cmd": f"{entry['cmd']} --recipe {target}", "wdir": "../.."}
        entry["params"] = [{f"{target}/{PARAMS}": [name]}]
        if name == "export":  # git holds the pipeline's model alone, so that a recipe's must be in DVC's cache
            entry["outs"] = [path_of(out) for out in entry["outs"]]
        entry |= {key: [move(file) for file in entry.get(key, [])] for key in ("deps", "outs")}
    dag.pop("artifacts", None)


def of_folder(config: prepare_data.Config) -> tuple[tuple[int, int, int], int]:
    """The shape (C, H, W) that a folder's pictures will have, and how many there are; read up to the first in colour.

    Raises: InputError for a folder that is not there, or of whose pictures none can be read.
    """
    root, folder = Path(os.path.expanduser(config.root)), data.image_folder
    paths = folder.find(root).paths
    results = track(folder.convert(paths, config.conversion()), len(paths), "picture", "new_recipe")
    pictures = (x for x in results if not isinstance(x, str))
    first = next(pictures, None)
    if first is None:
        reasons = folder.listing(map(str, folder.convert(paths, config.conversion()))) or "it has no pictures"
        raise InputError(f"--set prepare_data.root={root}: no picture can be read: {reasons}")
    colours = first.shape[2] == 3 or (config.channels == "auto" and any(x.shape[2] == 3 for x in pictures))
    return (3 if colours else 1, *first.shape[:2]), len(paths)


def fitting_settings(values: dict[str, Any], settings: Sequence[str], own_sizes: bool) -> list[str]:
    """The pipeline's sizes for images of another shape or number than MNIST's, as settings.

    The U-Net is wider for latents of more values, and a batch smaller for those of more places; pixels in colour have a
    normal density. No sample of other data than the pipeline's is drawn once more. A folder has as many samples drawn
    and scored as it has test pictures, and a small one is trained on with dropout, and for fewer steps. own_sizes:
    whether the values are another recipe's, whose sizes stay, but for a U-Net's patches of pixels, which must fit.
    Raises: as `of_folder`, and for a folder that is not named.
    """
    before = values["prepare_data"].get("dataset")
    config = prepare_data.Config.parse(with_settings(dict(values), settings)["prepare_data"], "prepare_data")
    named = before == "folder" or any(text.startswith("prepare_data.root=") for text in settings)
    if config.dataset == "folder" and not named:
        raise InputError("--set prepare_data.dataset=folder: which one? Add --set prepare_data.root=FOLDER")
    root = Path(os.path.expanduser(config.root))
    if named and "folder" not in (config.dataset, before) and data.known.missing(config.dataset, root):
        problem = f"{root} does not hold {config.dataset}"
        raise InputError(f"--set prepare_data.root: {problem}; for pictures add --set prepare_data.dataset=folder")
    shape = SHAPES.get(config.dataset, MNIST)
    # the look at each sample has been tried with ten digits alone, and takes three evaluations for each class
    chosen = [] if own_sizes or config.dataset == before else ["sample.redraw=false"]
    if config.dataset == "folder":
        shape, count = of_folder(config)
        n = min(max(round(config.shares[2] * count), 200), 10_000)  # the grid shows 200
        chosen += [f"{stage}.n={n}" for stage in ("sample", "evaluate", "memorisation") if stage in values]
    if shape != MNIST and not own_sizes:
        channels, height, width = shape
        if "train_vae" in values:
            patch = networks.autoencoder.fitting_patch(shape)
            channels = networks.autoencoder.fitting_latent_channels(shape, patch)
            height, width = -(-height // patch), -(-width // patch)
            chosen += COLOUR if shape[0] == 3 else ["train_vae.scaled=0.0"] if height < 3 else []
        chosen.append(f"{NETWORK}.width={64 if channels * height * width <= 512 else 96}")
        chosen.append(f"{OPTIMISATION}.batch_size={256 if height * width <= 100 else 64}")
    fitted = with_settings(dict(values), [*chosen, *settings])
    training = train_diffusion.Config.parse(fitted["train_diffusion"], "train_diffusion")
    patch = training.networks.get("unet", {}).get("patch", 1)
    if "train_vae" not in values and any(side % patch for side in shape[1:]):
        chosen.append(f"{NETWORK}.patch={math.gcd(patch, *shape[1:])}")
    if not own_sizes and config.dataset == "folder":
        own = training.optimisation
        steps = max(round(config.shares[0] * count * EPOCHS / own.batch_size / 100) * 100, FEWEST_STEPS)
        chosen.append(f"{OPTIMISATION}.steps={min(steps, own.steps)}")
        if own.steps * own.batch_size > OFTEN * config.shares[0] * count and training.network == "unet":
            chosen.append(f"{NETWORK}.dropout={DROPOUT}")
    return chosen


def as_path(path: Path) -> str:
    """The text of a path in dvc.yaml, where a backslash keeps ${ from beginning the name of a parameter."""
    return str(path).replace("${", "\\${")


def see_the_folder(dag: dict[str, Any], section: dict[str, Any]) -> None:
    """Make a folder of pictures a dependency of prepare_data beside its code, so that DVC sees it change.

    DVC does not look into linked folders, which become dependencies of their own, and fails at a link to nothing, at
    what is no file, such as a named pipe, or may not be read, and at a name that is no UTF-8. Raises: InputError.
    """
    deps = dag["stages"]["prepare_data"].setdefault("deps", [])
    deps[:] = [dep for dep in deps if dep.startswith(("ldm/", "stages/"))]  # without the folder until now
    if section["dataset"] != "folder":
        return
    root = Path(os.path.expanduser(str(section.get("root", prepare_data.ROOT))))
    deps.append(as_path(root))
    for folder, names in data.image_folder.walk(root, hidden=True):
        deps += [as_path(folder.resolve())] if folder.is_symlink() and folder != root else []
        for path in (folder / name for name in names):
            shown = os.fspath(path).encode("utf-8", "replace").decode()
            kinds = {"a link to nothing": not path.exists(), "no file": not path.is_file()}
            kinds |= {"not readable": not os.access(path, os.R_OK), "named in no UTF-8": shown != os.fspath(path)}
            if kind := next(filter(kinds.get, kinds), None):
                raise InputError(f"{shown} is {kind}, at which DVC fails; mend or remove it")


@click.command(help=__doc__)
@click.argument("folder", type=Path)
@click.option("--from", "source", type=Path, default=Path(), help="Folder of another recipe to start from.")
@click.option("--without", "dropped", multiple=True, type=click.Choice(OPTIONAL), help="Leave a stage out.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a parameter (repeatable).")
def command(folder: Path, source: Path, dropped: tuple[str, ...], settings: tuple[str, ...]) -> None:
    if folder.exists():
        raise InputError(f"{folder} exists already; choose another folder, or remove it")
    if not source.resolve().is_relative_to(ROOT):
        raise InputError(f"--from {source}: it is not in {ROOT}; name a recipe of this checkout")
    if folder.resolve().parent != ROOT / "recipes" or not re.fullmatch(r"[\w.-]+", folder.name):
        problem = f"is not a folder in {ROOT / 'recipes'} whose name has letters, digits, _, - and . alone"
        raise InputError(f"{folder} {problem}; choose one such as recipes/mine")
    for name in NEEDED:
        if name not in stages_of(source):
            raise InputError(f"--from {source}: it has no stage {name}; take recipes/fashion_ddpm, or leave it out")
        read_section(source / PARAMS, name)
    form = YAML()
    form.width = 140  # a U-Net of a few options stays in one line
    here, there = (path.resolve().relative_to(ROOT).as_posix() for path in (source, folder))
    text, values = (source / DAG).read_text("utf-8"), form.load(source / PARAMS)
    dag = form.load(text if here == "." else text.replace(here, there))
    for name in dropped:
        without(dag, name)
        values.pop(name, None)
    with_settings(values, [*fitting_settings(values, settings, here != "."), *settings])
    if here == ".":
        make_recipe(dag, there)
    see_the_folder(dag, values["prepare_data"])  # which may lie among the project's artifacts
    folder.mkdir(parents=True)
    try:
        form.dump(dag, folder / DAG)
        form.dump(values, folder / PARAMS)
        check_parameters(folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    print(f"{folder} is ready: change its {PARAMS}, then run")
    print(f"  dvc repro {folder / DAG}\n  dvc metrics show {folder}/artifacts/metrics/*.json")


if __name__ == "__main__":
    run_command(command, "new_recipe")
