"""Decode the samples into images, and show them: a grid, and the denoising of a few as an animation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ldm import networks
from ldm.config import Count, Section
from ldm.images import gif, png, tile
from ldm.lazy import Tensor, torch
from ldm.networks.latents import Standardiser
from stages.runner.command import stage
from stages.runner.run import Run


class Config(Section):
    """The pictures.

    batch_size: samples decoded at once
    columns: columns of the grid
    rows: rows of the grid
    frames: frames of the animation, at most; of a longer run, as many at equal distances
    frame_ms: milliseconds that a frame of the animation stays
    """

    batch_size: Count
    columns: Count
    rows: Count
    frames: Annotated[int, Field(ge=2)] = 50
    frame_ms: Annotated[int, Field(ge=20)] = 120


def compute(run: Run[Config]) -> None:
    config, inputs = run.config, run.load_all()
    samples, latents, images = (inputs[kind] for kind in ("samples", "latents", "images"))
    vae = networks.autoencoder.from_artifact(inputs.get("vae"), run.device)
    standardiser = Standardiser.from_artifact(latents, run.device)

    def decode(x: Tensor) -> Tensor:
        z = standardiser.unstandardise(x.to(run.device))
        return networks.autoencoder.decode_images(vae, z, config.batch_size).cpu()

    generated = decode(samples["samples"])
    shown, steps = samples["trajectory"].shape[:2]
    if "grid.png" in run.outputs:
        run.write("grid.png", png(tile(generated[: config.columns * config.rows], config.columns)))
    if "denoising.gif" in run.outputs:
        chosen = torch.linspace(0, steps - 1, min(steps, config.frames)).round().long()
        frames = decode(samples["trajectory"][:, chosen].flatten(0, 1)).unflatten(0, (shown, len(chosen)))
        animation = gif([tile(frame, shown) for frame in frames.unbind(1)], config.frame_ms, hold=2000)
        run.write("denoising.gif", animation)
    if "reconstructions.png" in run.outputs:
        originals = images["validation_images"][: config.columns]
        means = latents["validation_mean"][: config.columns].to(run.device)
        reconstructed = networks.autoencoder.decode_images(vae, means).cpu()
        run.write("reconstructions.png", png(tile(torch.cat([originals, reconstructed]), config.columns)))
    label = samples.config.get("label")  # the class of all of them, where one was asked for
    run.save("generated", {"images": generated}, list(inputs.values()), **({} if label is None else {"label": label}))


main = stage("decode", Config, compute, __doc__)

if __name__ == "__main__":
    main()
