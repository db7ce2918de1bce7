"""Train the variational autoencoder: a Bernoulli decoder and a weighted KL term."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import ChoiceSection, OptionTable, choice
from ldm.optimisation import Optimisation
from stages.cli import Job, stage
from stages.training import fit

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.autoencoder import Autoencoder


class Config(ChoiceSection):
    """The network, the loss and the training."""

    seed: int = Field(ge=0, lt=2**63, description="seed of the weights, the order and the posterior draws")
    autoencoder: str = choice("autoencoders", "the network")
    autoencoders: OptionTable
    kl_weight: float = Field(ge=0, description="weight of the KL term; 1 is the evidence lower bound")
    optimisation: Optimisation


def run(job: Job[Config]) -> None:
    import torch

    from ldm.autoencoder import bernoulli_nll, decode_images, encode_images, from_config, vae_loss
    from ldm.latents import active_dimensions, draw, kl_divergence
    from ldm.parallel import share
    from ldm.pixels import from_uint8
    from ldm.training import Batches, Training

    config, images = job.config, job.load("images")
    torch.manual_seed(config.seed)
    generator = torch.Generator(job.device).manual_seed(config.seed)
    x, held_out = images["train_images"].to(job.device), images["validation_images"].to(job.device)
    vae = from_config(config.resolved(), x.shape[1:]).to(job.device)
    order = Batches(len(x), config.optimisation.batch_size, generator)
    mine = share(config.optimisation.batch_size)
    latent_shape = vae.encode(from_uint8(x[:1]))[0].shape[1:]

    def loss() -> Tensor:
        index = next(order)
        eps = torch.randn(len(index), *latent_shape, generator=generator, device=x.device)
        return vae_loss(vae, from_uint8(x[index[mine]]), eps[mine], config.kl_weight).mean()

    @torch.inference_mode()
    def validate(network: Autoencoder) -> float:
        fixed = torch.Generator(job.device).manual_seed(0)
        total = 0.0
        for part in held_out.split(500):
            eps = torch.randn(len(part), *latent_shape, generator=fixed, device=part.device)
            total += vae_loss(network, from_uint8(part), eps, config.kl_weight).sum().item()
        return total / len(held_out)

    averaged = fit(job, Training(vae, loss, config.optimisation, order), x[0].numel(), validate)
    mean, log_variance = encode_images(averaged, held_out)
    z = draw(mean, log_variance, torch.randn(mean.shape, generator=generator, device=job.device))
    decoded = decode_images(averaged, z)
    with torch.inference_mode():
        nll = torch.cat([bernoulli_nll(averaged.decode(a), from_uint8(b)) for a, b in zip(z.split(500), held_out.split(500), strict=True)])
    metrics = {
        "data": images.config["data"],
        "n": len(held_out),
        "reconstruction_mse": (from_uint8(decoded) - from_uint8(held_out)).double().square().mean().item(),
        "reconstruction_nll": nll.double().mean().item(),
        "kl": kl_divergence(mean, log_variance).double().sum().item() / len(mean),
        "active_dimensions": active_dimensions(mean),
    }
    job.write("metrics.json", json.dumps(metrics, indent=1).encode())
    job.save("vae", averaged.state_dict(), [images], shape=list(x.shape[1:]))


main = stage("train_vae", Config, run, __doc__, parallel=True)

if __name__ == "__main__":
    main()
