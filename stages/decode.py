"""Decode the samples into images, and show them: a grid, and the denoising of a few as an animation."""

from __future__ import annotations

from pydantic import Field

from ldm.config import Section
from stages.cli import Job, stage


class Config(Section):
    """The pictures."""

    batch_size: int = Field(ge=1, description="samples decoded at once")
    columns: int = Field(ge=1, description="columns of the grid")
    rows: int = Field(ge=1, description="rows of the grid")
    frames: int = Field(ge=2, description="frames of the animation, at most: of a longer run, some at equal distances")
    frame_ms: int = Field(ge=20, description="milliseconds a frame of the animation")


def run(job: Job[Config]) -> None:
    import torch

    from ldm.autoencoder import decode_images, from_artifact
    from ldm.latents import Standardiser
    from ldm.pictures import gif, png, tile

    config, inputs = job.config, job.load_all()
    samples, latents, images = (inputs[kind] for kind in ("samples", "latents", "images"))
    vae, standardiser = from_artifact(inputs.get("vae")).to(job.device), Standardiser.from_artifact(latents, job.device)

    def decode(x):
        return decode_images(vae, standardiser.restore(x.to(job.device)), config.batch_size).cpu()

    generated = decode(samples["samples"])
    shown, steps = samples["trajectory"].shape[:2]
    if "grid.png" in job.outputs:
        job.write("grid.png", png(tile(generated[: config.columns * config.rows], config.columns)))
    if "denoising.gif" in job.outputs:
        chosen = torch.linspace(0, steps - 1, min(steps, config.frames)).round().long()
        frames = decode(samples["trajectory"][:, chosen].flatten(0, 1)).unflatten(0, (shown, len(chosen)))
        job.write("denoising.gif", gif([tile(frame, shown) for frame in frames.unbind(1)], config.frame_ms, hold=2000))
    if "reconstructions.png" in job.outputs:
        originals = images["validation_images"][: config.columns]
        reconstructed = decode_images(vae, latents["validation_mean"][: config.columns].to(job.device)).cpu()
        job.write("reconstructions.png", png(tile(torch.cat([originals, reconstructed]), config.columns)))
    label = samples.config.get("label")  # the class of all of them, where one was asked for
    job.save("generated", {"images": generated}, list(inputs.values()), **({} if label is None else {"label": label}))


main = stage("decode", Config, run, __doc__)

if __name__ == "__main__":
    main()
