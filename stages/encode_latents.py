"""Encode all images: posterior mean and log-variance, and the moments that standardise the draws.

Without an autoencoder among the inputs the latents are the images themselves.
"""

from typing import Literal

from ldm import Count, Section, Seed, networks
from ldm.lazy import Tensor, torch
from ldm.networks import Posterior, Standardiser
from stages.runner import Run, stage, track


class Config(Section):
    """How to encode, and what the latents of an image are.

    batch_size: images encoded at once
    draws: fresh keeps the posteriors, and training draws from them in each step; once keeps a single draw of each
    seed: seed of the draws that are made once
    """

    batch_size: Count
    draws: Literal["fresh", "once"] = "fresh"
    seed: Seed = 0


def compute(run: Run[Config]) -> None:
    config, inputs = run.config, run.load_all()
    vae, images = networks.autoencoder.from_artifact(inputs.get("vae"), run.device), inputs["images"]
    generator = torch.Generator().manual_seed(config.seed)
    tensors: dict[str, Tensor] = {}
    for split in ("train", "validation", "test"):
        pixels = images[f"{split}_images"].to(run.device).split(config.batch_size)
        batches = track(pixels, len(pixels), "batch", f"{run.name}: {split}")
        encoded = [networks.autoencoder.encode_images(vae, x, len(x)) for x in batches]
        posterior = Posterior(*(torch.cat(parts).cpu() for parts in zip(*encoded, strict=True)))
        if config.draws == "once":
            posterior = Posterior.exact(posterior.draw(torch.randn(posterior.mean.shape, generator=generator)))
        tensors |= {f"{split}_mean": posterior.mean, f"{split}_log_variance": posterior.log_variance}
    moments = Standardiser.fit(Posterior(tensors["train_mean"], tensors["train_log_variance"]))
    run.save("latents", tensors | {"channel_mean": moments.mean, "channel_std": moments.std}, list(inputs.values()))


main = stage("encode_latents", Config, compute, __doc__)

if __name__ == "__main__":
    main()
