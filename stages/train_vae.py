"""Train the variational autoencoder: a likelihood of the pixels and a weighted KL term."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from ldm import InputError, NonNegative, Options, Section, Seed, Share, choice, from_uint8, metrics, networks, training
from ldm.lazy import Tensor, torch
from ldm.networks import autoencoders
from ldm.training import Optimisation
from stages.runner import Run, fit, stage, warn

FAR = 1.5  # a ratio above which the autoencoder is said to be the limit


class Config(Section):
    """The network, the loss and the training.

    seed: seed of the weights, the order and the posterior draws
    autoencoder: the network
    kl_weight: weight of the KL term; 1 is the evidence lower bound
    likelihood: density of the pixels around the decoder's mean; of gaussian and laplace, the width is the best one for
      each batch
    scaled: share of the images whose latents are made smaller and decoded into a smaller image, so that the latents of
      one thing in two sizes are alike, and a denoiser learns them faster; 0 for none
    """

    seed: Seed
    autoencoder: str = choice(autoencoders)
    autoencoders: Options
    kl_weight: NonNegative
    likelihood: Literal["bernoulli", "gaussian", "laplace"] = "bernoulli"
    scaled: Share = 0.0
    optimisation: Optimisation


def compute(run: Run[Config]) -> None:
    config, inputs, vaes = run.config, run.load_all(), networks.autoencoder
    images = inputs["images"]
    torch.manual_seed(config.seed)
    generator = torch.Generator(run.device).manual_seed(config.seed)
    train, validation = (images[f"{split}_images"].to(run.device) for split in ("train", "validation"))
    vae = vaes.from_config(config.resolved(), train.shape[1:]).to(run.device)
    size = config.optimisation.batch_size
    order = training.loop.Batches(len(train), size, generator)
    local = training.distributed.local_slice(size)
    latent_shape = vae.encode(from_uint8(train[:1])).mean.shape[1:]
    vae_loss: Callable[..., Tensor] = vaes.vae_loss
    if config.scaled:
        heights = networks.scaling.heights(range(size)[local], config.scaled, latent_shape[1], run.device)
        vae_loss = partial(networks.scaling.scaled_vae_loss, heights=heights)

    def loss(index: Tensor) -> Tensor:
        eps = torch.randn(len(index), *latent_shape, generator=generator, device=train.device)
        x = from_uint8(train[index[local]])
        return vae_loss(vae, x, eps[local], kl_weight=config.kl_weight, likelihood=config.likelihood).mean()

    @torch.inference_mode()
    def validate(network: networks.autoencoder.Autoencoder) -> float:
        fixed = torch.Generator(run.device).manual_seed(0)
        total = 0.0
        for batch in validation.split(500):
            eps = torch.randn(len(batch), *latent_shape, generator=fixed, device=batch.device)
            total += vaes.vae_loss(network, from_uint8(batch), eps, config.kl_weight, config.likelihood).sum().item()
        return total / len(validation)

    averaged = fit(run, training.loop.Training(vae, loss, config.optimisation, order), validate)
    posterior = vaes.encode_images(averaged, validation)
    z = posterior.draw(torch.randn(posterior.mean.shape, generator=generator, device=run.device))
    decoded = vaes.decode_images(averaged, z)
    with torch.inference_mode():
        pairs = zip(z.split(500), validation.split(500), strict=True)
        nll = torch.cat([vaes.LIKELIHOODS[config.likelihood](averaged.decode(a), from_uint8(b)) for a, b in pairs])
    mse = (from_uint8(decoded) - from_uint8(validation)).double().square().mean().item()
    kl = posterior.kl_divergence().double().sum().item() / len(validation)
    values = {"data": images.config["data"], "n": len(validation), "reconstruction_mse": mse}
    values |= {"reconstruction_nll": nll.double().mean().item(), "kl": kl}
    few = len(validation) <= networks.FEATURES
    ratio = ratio_to_floor(run, inputs, decoded, (averaged, train) if few else None)
    values |= {"active_dimensions": posterior.active_dimensions(), "fid_train" if few else "fid_val": ratio}
    run.write_json("metrics.json", values, digits=4)  # kinds of CPU differ after those
    run.save("vae", averaged.state_dict(), [images], shape=list(train.shape[1:]))


def ratio_to_floor(
    run: Run[Config], inputs: dict[str, Any], decoded: Tensor, instead: tuple[Any, Tensor] | None
) -> float | None:
    """The Fréchet distance of reconstructed validation images to the training images, over that of the images.

    instead: for few validation images, the autoencoder and the training images, of which it reconstructs the first,
    third and so on, to compare them with the rest.
    None where there are too few images, or the stage is not given the classifier and its features. What lies above 1 no
    diffusion model can make good: a large ratio is warned of.
    """
    if not {"classifier", "features"} <= inputs.keys():
        return None
    classifier = networks.classifier.Classifier.from_artifact(inputs["classifier"], run.device)
    every, validation = (inputs["features"][split].numpy() for split in ("train", "validation"))
    train, others = (every[1::2], every[::2]) if instead else (every, validation)
    if min(len(train), len(others)) <= train.shape[1]:
        warn(run.name, f"{len(every)} training images are too few to tell whether the autoencoder is the limit")
        return None
    if instead:
        vae, images = instead
        decoded = networks.autoencoder.decode_images(vae, networks.autoencoder.encode_images(vae, images[::2]).mean)
    features = networks.classifier.in_batches(classifier.features, decoded).cpu().numpy()
    distance = metrics.frechet.frechet_distance
    try:
        of_train, of_others, own = (metrics.frechet.moments(x) for x in (train, others, features))
    except InputError as error:  # all reconstructions may be the same
        warn(run.name, f"the reconstructions are not compared with the floor: {error}")
        return None
    floor = distance(of_others, of_train)
    ratio = distance(own, of_train) / floor if floor > 0 else math.inf
    if ratio > FAR:
        said = f"reconstructed images lie {ratio:.1f} times as far from the training images as the images themselves"
        warn(run.name, f"{said}, and samples can come no closer: try more latent_channels, or a lower kl_weight")
    return ratio if math.isfinite(ratio) else None


main = stage("train_vae", Config, compute, __doc__, parallel=True)

if __name__ == "__main__":
    main()
