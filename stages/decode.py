"""Decode the samples into images, and show them: a grid, and the denoising of a few as an animation."""

from pydantic import Field

from ldm import Count, Section, Several, gif, networks, png, tile
from ldm.lazy import torch
from stages.runner import Run, stage, track


class Config(Section):
    """The pictures.

    batch_size: samples decoded at once
    columns: columns of the grid
    rows: rows of the grid
    frames: most frames of the animation; of a longer sampling run, so many states at equal distances
    frame_ms: milliseconds that a frame of the animation stays; a GIF counts in tens
    """

    batch_size: Count
    columns: Count
    rows: Count
    frames: Several = 50
    frame_ms: int = Field(120, ge=20, le=10_000, multiple_of=10)


def compute(run: Run[Config]) -> None:
    config, inputs = run.config, run.load_all()
    samples, latents, images = inputs["samples"], inputs["latents"], inputs["images"]
    decoder = networks.autoencoder.Decoder.from_artifacts(latents, inputs.get("vae"), run.device)
    batches = samples["samples"].to(run.device).split(config.batch_size)
    generated = torch.cat([decoder(x, len(x)) for x in track(batches, len(batches), "batch", run.name)])
    trajectory = samples["trajectory"]  # (shown samples, steps + 1, c, h, w)
    label = samples.config.get("label")  # the class of all of them, where one was asked for
    tensors = {"images": generated} | {name: samples[name] for name in ["labels"] if name in samples.tensors}
    if "denoising.gif" in run.outputs:  # first, since it may be too large for its format
        shown, steps = trajectory.shape[:2]
        chosen = torch.linspace(0, steps - 1, min(steps, config.frames)).round().long()
        decoded = decoder(trajectory[:, chosen].flatten(0, 1).to(run.device), config.batch_size)
        frames = [tile(frame, shown) for frame in decoded.unflatten(0, (shown, len(chosen))).unbind(1)]
        animation = gif(frames, config.frame_ms, hold=2000)
    run.save("generated", tensors, list(inputs.values()), **({} if label is None else {"label": label}))
    if "denoising.gif" in run.outputs:
        run.write("denoising.gif", animation)
    if "grid.png" in run.outputs:
        run.write("grid.png", png(tile(generated[: config.columns * config.rows], config.columns)))
    if "reconstructions.png" in run.outputs:
        originals = images["validation_images"][: config.columns]
        means = latents["validation_mean"][: config.columns]
        reconstructed = networks.autoencoder.decode_images(decoder.vae, means.to(run.device)).cpu()
        run.write("reconstructions.png", png(tile(torch.cat([originals, reconstructed]), len(originals))))


main = stage("decode", Config, compute, __doc__)

if __name__ == "__main__":
    main()
