"""Variational autoencoders with a Bernoulli decoder (Kingma & Welling 2014, arXiv:1312.6114).

The decoder's logits are those of the pixels' grey levels, taken as probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm import choices
from ldm.latents import draw, kl_divergence
from ldm.pixels import from_uint8, to_uint8

if TYPE_CHECKING:
    from ldm.artifacts import Artifact


class Autoencoder(nn.Module):
    """What every `ldm/autoencoders/<name>.py` builds."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] → the posterior's mean (B, c, h, w) and log-variance, the same or (B, 1, 1, 1)."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, c, h, w) → logits (B, C, H, W)."""
        raise NotImplementedError

    def images(self, z: Tensor) -> Tensor:
        """Latents (B, c, h, w) → the mean image in [0, 1], (B, C, H, W)."""
        return self.decode(z).float().sigmoid()


class Pixels(Autoencoder):
    """None at all: the latents are the images, with a posterior of no spread."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.new_full((len(x), 1, 1, 1), -80.0)

    def images(self, z: Tensor) -> Tensor:
        return z


def from_config(config: Mapping[str, Any], shape: Sequence[int]) -> Autoencoder:
    """Build from a plain `train_vae` section, for images (C, H, W). Weights are random."""
    name = config["autoencoder"]
    return choices.build("autoencoders", name, config["autoencoders"][name], tuple(shape))


def from_artifact(artifact: Artifact | None) -> Autoencoder:
    """The trained autoencoder, in evaluation mode; `Pixels` for None. Raises: InputError where the weights do not fit."""
    if artifact is None:
        return Pixels()
    vae = artifact.build(lambda config: from_config(config, config["shape"]))
    artifact.load_into(vae)
    return vae.eval()


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """−log p(x | z) in nats per image, (B,): the cross-entropy of grey levels taken as probabilities."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def vae_loss(vae: Autoencoder, x: Tensor, eps: Tensor, kl_weight: float) -> Tensor:
    """Negative ELBO in nats per image with the KL term weighted, (B,). eps: noise of the latents' shape."""
    mean, log_variance = vae.encode(x)
    reconstruction = bernoulli_nll(vae.decode(draw(mean, log_variance, eps)), x)
    return reconstruction + kl_weight * kl_divergence(mean, log_variance).flatten(1).sum(1)


@torch.inference_mode()
def decode_images(vae: Autoencoder, z: Tensor, batch_size: int = 500) -> Tensor:
    """The decoder's mean as uint8 images: z (N, c, h, w) → (N, C, H, W)."""
    return torch.cat([to_uint8(vae.images(batch)) for batch in z.split(batch_size)])


@torch.inference_mode()
def encode_images(vae: Autoencoder, images: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Posterior mean and log-variance of uint8 images: (N, C, H, W) → (N, c, h, w), and the same or (N, 1, 1, 1)."""
    parts = [vae.encode(from_uint8(batch)) for batch in images.split(batch_size)]
    return torch.cat([mean for mean, _ in parts]), torch.cat([log_variance for _, log_variance in parts])
