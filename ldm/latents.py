"""The latent space: posterior draws, their divergence from the prior, and their standardisation per channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ldm.artifacts import Artifact


def draw(mean: Tensor, log_variance: Tensor, eps: Tensor) -> Tensor:
    """A draw of the posterior from standard normal noise of the mean's shape."""
    return mean + (log_variance / 2).exp() * eps


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) ‖ N(0, 1)) in nats, elementwise (Kingma & Welling, appendix B)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2


class Standardiser(NamedTuple):
    """Per-channel mean and standard deviation of the posterior draws of the training split, (c,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, mean: Tensor, log_variance: Tensor) -> Standardiser:
        """The exact moments of draws from the posteriors (N, c, h, w), in float64.

        E z = E mean, and by the law of total variance Var z = Var mean + E variance.
        """
        over = (0, 2, 3)
        centre = mean.double().mean(over)
        spread = (mean.double() - centre[:, None, None]).square().mean(over) + log_variance.double().exp().mean(over)
        return cls(centre, spread.sqrt())

    @classmethod
    def from_artifact(cls, latents: Artifact, device: str = "cpu") -> Standardiser:
        return cls(latents["channel_mean"].to(device), latents["channel_std"].to(device))

    def standardise(self, z: Tensor) -> Tensor:
        """Latents of the autoencoder → zero mean, unit variance per channel; (B, c, h, w)."""
        return ((z - self.mean[:, None, None]) / self.std[:, None, None]).to(z.dtype)

    def restore(self, x: Tensor) -> Tensor:
        """The inverse of `standardise`, in the type of x."""
        return (x * self.std[:, None, None] + self.mean[:, None, None]).to(x.dtype)


def active_dimensions(mean: Tensor, threshold: float = 0.01) -> int:
    """Latent dimensions whose posterior mean varies over the data by more than a variance of 0.01.

    mean: (N, c, h, w). Burda et al. 2016, arXiv:1509.00519, section 5.
    """
    return int((torch.var(mean.double(), 0) > threshold).sum())
