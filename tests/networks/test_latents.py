"""Posteriors of latents: their divergence from the prior, their scale, and the dimensions in use."""

import pytest
import torch

from ldm.networks.latents import Posterior, Standardiser


def test_kl_is_torchs():
    mean, log_variance = torch.randn(2, 4, 2, 3, 3, dtype=torch.float64)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(Posterior(mean, log_variance).kl_divergence(), expected)


def test_standardised_draws_have_unit_moments_and_return():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(20_000, 2, 3, 3, generator=generator) * torch.tensor([0.5, 3.0])[:, None, None] + 1.5
    posterior = Posterior(mean, torch.randn(20_000, 2, 3, 3, generator=generator) - 1)
    fitted = Standardiser.fit(posterior)
    assert fitted.mean.dtype == fitted.std.dtype == torch.float64
    z = posterior.draw(torch.randn(mean.shape, generator=generator))
    x = fitted.standardise(z)
    assert x.dtype == torch.float32
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0, 0], abs=0.01)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.01)
    torch.testing.assert_close(fitted.unstandardise(x), z, rtol=1e-5, atol=1e-5)


def test_some_of_the_posteriors():
    """By indices and by a slice; latents that are known, whose log-variances are (N, 1, 1, 1), go along."""
    z = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    for posterior in (Posterior(z, z - 1), Posterior.exact(z)):
        for index in (torch.tensor([4, 0, 4]), slice(1, 3)):
            some = posterior.at(index)
            assert torch.equal(some.mean, z[index])
            assert torch.equal(some.log_variance, posterior.log_variance[index])
    assert torch.equal(Posterior.exact(z).draw(torch.randn(z.shape)), z)


def test_active_dimensions_counts_those_that_vary():
    mean = torch.zeros(500, 2, 3, 3)
    mean[:, 0, 1] = torch.randn(500, 3)
    mean[:, 1, 2, 2] = 0.05 * torch.randn(500)
    assert Posterior.exact(mean).active_dimensions() == 3
