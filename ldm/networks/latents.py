"""The latent space: posteriors of an autoencoder, their divergence from the prior, and their scale per channel."""

from typing import NamedTuple, Self

from ldm.artifacts import Artifact
from ldm.lazy import Tensor, torch


class Posterior(NamedTuple):
    """Normal posteriors of latents: mean (N, c, h, w), and log_variance of the same shape or (N, 1, 1, 1)."""

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def exact(cls, z: Tensor) -> Self:
        """Latents that are known, as posteriors of practically no spread, e^−40."""
        return cls(z, z.new_full((len(z), 1, 1, 1), -80.0))

    def at(self, index: Tensor | slice) -> Self:
        """The posteriors of some of the samples."""
        return type(self)(self.mean[index], self.log_variance[index])

    def draw(self, eps: Tensor) -> Tensor:
        """A draw of each latent. eps: standard normal noise of the mean's shape."""
        return self.mean + (self.log_variance / 2).exp() * eps

    def kl_divergence(self) -> Tensor:
        """KL(posterior ‖ N(0, 1)) in nats, elementwise (Kingma & Welling 2014, arXiv:1312.6114, appendix B)."""
        return (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance) / 2

    def active_dimensions(self, threshold: float = 0.01) -> int:
        """Latent dimensions whose mean varies over the data by more than this variance.

        Burda et al. 2016, arXiv:1509.00519, section 5.
        """
        return int((torch.var(self.mean.double(), 0) > threshold).sum())


class Standardiser(NamedTuple):
    """Mean and standard deviation of each channel over the posterior draws of the training split, (c,) in float64."""

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, posterior: Posterior) -> Self:
        """The exact moments, per channel, of draws z from the posteriors (N, c, h, w).

        E z = E mean, and by the law of total variance Var z = Var mean + E variance.
        """
        over = (0, 2, 3)
        mean = posterior.mean.double()
        centre = mean.mean(over)
        variance = (mean - centre[:, None, None]).square().mean(over) + posterior.log_variance.double().exp().mean(over)
        return cls(centre, variance.sqrt())

    @classmethod
    def from_artifact(cls, latents: Artifact, device: str = "cpu") -> Self:
        """The moments that an artifact of latents holds, on a device."""
        return cls(latents["channel_mean"].to(device), latents["channel_std"].to(device))

    def standardise(self, z: Tensor) -> Tensor:
        """Latents of the autoencoder → zero mean and unit variance per channel; (B, c, h, w)."""
        return ((z - self.mean[:, None, None]) / self.std[:, None, None]).to(z.dtype)

    def unstandardise(self, x: Tensor) -> Tensor:
        """The inverse of `standardise`, in the type of x."""
        return (x * self.std[:, None, None] + self.mean[:, None, None]).to(x.dtype)
