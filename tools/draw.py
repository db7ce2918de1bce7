"""Draw images from a trained model: a grid as PNG, or the way from noise to them as an animated GIF.

\b
python -m tools.draw --n 40 --out digits.png                     each class by its share of the training images
python -m tools.draw --labels 0,1,2,3 --n 40 --out digits.png    these classes in turn
python -m tools.draw --labels 7 --n 10 --out seven.gif           an animation
"""

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click

import ldm
from ldm import InputError, gif, png, tile, write_atomic
from stages.runner import check_writable, limit_threads, pick_device, run_command

EXPORTED = "artifacts/export/model.safetensors"


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--model", type=Path, default=EXPORTED, help="File of a model, or folder of artifacts.")
@click.option("--labels", help="Classes with commas, by name or index, which take turns.")
@click.option("--n", type=click.IntRange(min=1), default=40, help="Number of images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the images.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the sampler; none: those of the model.")
@click.option("--columns", type=click.IntRange(min=1), default=10, help="Columns of the grid.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:i.")
@click.option("--out", type=Path, required=True, help="PNG or GIF file.")
def command(model: Path, labels: str | None, n: int, columns: int, device: str, out: Path, **how: Any) -> None:
    if out.suffix.lower() not in (".png", ".gif"):
        raise InputError(f"--out {out}: name a .png file for a grid, or a .gif file for an animation")
    check_writable(out.parent)
    limit_threads()
    loaded = ldm.load(model, pick_device(device))
    names = [labels] if labels in loaded.denoiser.class_names else [name.strip() for name in (labels or "").split(",")]
    own = None if labels is None else list(islice(cycle(names), n))
    if out.suffix.lower() == ".png":
        picture = png(tile(loaded.sample(n, label=own, **how), columns))
    else:
        states = loaded.denoising(n, label=own, **how)
        picture = gif([tile(state, columns) for state in states.unbind(1)], 120, hold=2000)
    write_atomic(out, picture)
    click.echo(f"{n} images are in {out}")


if __name__ == "__main__":
    run_command(command, "draw")
