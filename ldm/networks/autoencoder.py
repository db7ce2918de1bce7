"""Variational autoencoders (Kingma & Welling 2014, arXiv:1312.6114), whose decoder's sigmoid is the mean of the pixels.

With a Bernoulli likelihood grey levels are taken as probabilities.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ldm.artifacts import Artifact
from ldm.errors import InputError
from ldm.images import from_uint8, to_uint8
from ldm.networks.latents import Posterior, Standardiser
from ldm.networks.options import autoencoders

GROUPS = 8  # of the group norms


class Autoencoder(nn.Module):
    """The base of all autoencoders."""

    # images (B, C, H, W) in [0, 1] → the posterior of their latents, (B, c, h, w)
    encode: Callable[[Tensor], Posterior]
    # latents (B, c, h, w) → logits (B, C, H, W)
    decode: Callable[[Tensor], Tensor]

    def images(self, z: Tensor) -> Tensor:
        """Latents (B, c, h, w) → the mean image in [0, 1], (B, C, H, W)."""
        return self.decode(z).float().sigmoid()


class IdentityAutoencoder(Autoencoder):
    """Takes the images themselves as latents, for diffusion in pixels."""

    def encode(self, x: Tensor) -> Posterior:
        return Posterior.exact(x)

    def images(self, z: Tensor) -> Tensor:
        return z


class ConvVAE(Autoencoder):
    """encode: (B, C, H, W) in [0, 1] → (B, c, ⌈H / patch⌉, ⌈W / patch⌉); decode: back to logits.

    Where the patches do not fit, the image goes on at its lower and right edges, and what is decoded is cut.
    """

    def __init__(self, shape: Sequence[int], options: Any) -> None:
        """shape: (C, H, W). options: those of `ldm.networks.options.conv_vae`."""
        super().__init__()
        channels, self.height, self.width = shape
        width, blocks, patch = options.width, options.blocks, options.patch or fitting_patch(shape)
        latents = options.latent_channels or fitting_latent_channels(shape, patch)
        if width == GROUPS and max(shape[1:]) <= patch:
            problem = "each group of the norm is one channel at one place, which has no norm"
            raise InputError(f"autoencoders.conv_vae.width: for a grid of one place, {problem}; use a larger width")
        self.padding = (0, -self.width % patch, 0, -self.height % patch)
        conv = partial(nn.Conv2d, kernel_size=3, padding=1)
        coarse = [nn.PixelUnshuffle(patch), conv(patch**2 * channels, width), *(Residual(width) for _ in range(blocks))]
        self.encoder = nn.Sequential(*coarse, *norm_act(width), nn.Conv2d(width, 2 * latents, 1))
        coarse = [conv(latents, width), *(Residual(width) for _ in range(blocks)), *norm_act(width)]
        fine = [conv(width, options.smoothing * patch**2), nn.PixelShuffle(patch), nn.SiLU()]
        self.decoder = nn.Sequential(*coarse, *fine, conv(options.smoothing, channels))
        self.to(memory_format=torch.channels_last)

    def encode(self, x: Tensor) -> Posterior:
        if any(self.padding):
            x = nnf.pad(x, self.padding, "replicate")
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return Posterior(mean.contiguous(), log_variance.clamp(-20, 10).contiguous())

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z.contiguous(memory_format=torch.channels_last))[..., : self.height, : self.width]


def fitting_patch(shape: Sequence[int]) -> int:
    """4, or as many times its double as leave a grid of at most 12 places a side, for images (C, H, W)."""
    patch = 4
    while max(shape[1:]) > 12 * patch:
        patch *= 2
    return patch


def fitting_latent_channels(shape: Sequence[int], patch: int) -> int:
    """2 for grey images (C, H, W) and 4 for those in colour, times the pixels of a patch over 16."""
    return (2 if shape[0] == 1 else 4) * max(patch**2 // 16, 1)


class Residual(nn.Module):
    """x plus two convolutions of it, (B, C, h, w) → (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, channels, channels, 3, padding=1)
        self.layers = nn.Sequential(*norm_act(channels), conv(), *norm_act(channels), conv())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def norm_act(channels: int) -> tuple[nn.Module, nn.Module]:
    """Group norm and SiLU."""
    return nn.GroupNorm(GROUPS, channels), nn.SiLU()


def from_config(config: Mapping[str, Any], shape: Sequence[int]) -> Autoencoder:
    """Build from a resolved `train_vae` section, for images (C, H, W). Weights are random."""
    return autoencoders.chosen(config, "autoencoder")(shape)


def from_artifact(artifact: Artifact | None, device: str = "cpu") -> Autoencoder:
    """The trained autoencoder, in evaluation mode; `IdentityAutoencoder` for None.

    Raises: InputError where the weights do not fit.
    """
    if artifact is None:
        return IdentityAutoencoder()
    vae = artifact.build(lambda config: from_config(config, config["shape"]))
    return artifact.load_into(vae, device)


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """−log p(x | z) in nats per image, (B,): the cross-entropy of grey levels taken as probabilities."""
    return nnf.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def gaussian_nll(logits: Tensor, x: Tensor) -> Tensor:
    """As `bernoulli_nll`, of normal densities with one σ, the best one for the batch.

    Rybkin et al. 2021, arXiv:2006.13202, Eq. 6 ("optimal σ-VAE"); the gradient is that of a σ held fixed. The batch is
    that of one process, so that several processes train by slightly other σ than one.
    """
    squared = (logits.float().sigmoid() - x).square().flatten(1)
    variance = squared.detach().mean() + 1e-6
    return (squared / variance + (2 * math.pi * variance).log()).sum(1) / 2


def laplace_nll(logits: Tensor, x: Tensor) -> Tensor:
    """As `gaussian_nll`, of Laplace densities: absolute errors over one scale."""
    errors = (logits.float().sigmoid() - x).abs().flatten(1)
    scale = errors.detach().mean() + 1e-3
    return (errors / scale + (2 * scale).log()).sum(1)


LIKELIHOODS = {"bernoulli": bernoulli_nll, "gaussian": gaussian_nll, "laplace": laplace_nll}


def vae_loss(vae: Autoencoder, x: Tensor, eps: Tensor, kl_weight: float, likelihood: str = "bernoulli") -> Tensor:
    """Negative ELBO in nats per image with the KL term weighted, (B,). eps: noise of the latents' shape."""
    posterior = vae.encode(x)
    reconstruction = LIKELIHOODS[likelihood](vae.decode(posterior.draw(eps)), x)
    return reconstruction + kl_weight * posterior.kl_divergence().flatten(1).sum(1)


@torch.inference_mode()
def decode_images(vae: Autoencoder, z: Tensor, batch_size: int = 500) -> Tensor:
    """The decoder's mean as uint8 images: z (N, c, h, w) → (N, C, H, W)."""
    return torch.cat([to_uint8(vae.images(batch)) for batch in z.split(batch_size)])


class Decoder(NamedTuple):
    """From standardised latents to images."""

    vae: Autoencoder
    standardiser: Standardiser

    @classmethod
    def from_artifacts(cls, latents: Artifact, vae: Artifact | None, device: str) -> Self:
        """vae: None where the latents are the images. Raises: InputError where the weights do not fit."""
        return cls(from_artifact(vae, device), Standardiser.from_artifact(latents, device))

    def __call__(self, x: Tensor, batch_size: int = 500) -> Tensor:
        """Standardised latents (N, c, h, w) → uint8 images (N, C, H, W) on the CPU."""
        return decode_images(self.vae, self.standardiser.unstandardise(x), batch_size).cpu()


@torch.inference_mode()
def encode_images(vae: Autoencoder, images: Tensor, batch_size: int = 500) -> Posterior:
    """The posterior of uint8 images (N, C, H, W)."""
    parts = [vae.encode(from_uint8(batch)) for batch in images.split(batch_size)]
    return Posterior(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
