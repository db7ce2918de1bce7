"""The autoencoders: shapes, gradients, batches, and the likelihood of pixels."""

import pytest
import torch

from ldm.errors import InputError
from ldm.images import to_uint8
from ldm.networks.autoencoder import IdentityAutoencoder, bernoulli_nll, decode_images, encode_images, vae_loss
from ldm.networks.latents import Standardiser
from ldm.networks.options import autoencoders

SMALL = {"latent_channels": 3, "width": 8, "blocks": 1, "smoothing": 2}


def test_pixels_are_their_own_latents():
    images = torch.randint(256, (7, 3, 6, 5), dtype=torch.uint8)
    posterior = encode_images(IdentityAutoencoder(), images, 3)
    assert posterior.log_variance.shape == (7, 1, 1, 1)
    z = posterior.draw(torch.randn(posterior.mean.shape))
    assert torch.equal(decode_images(IdentityAutoencoder(), z), images)
    fitted = Standardiser.fit(posterior)
    torch.testing.assert_close(fitted.std, posterior.mean.double().std((0, 2, 3), correction=0))


def test_autoencoder_shapes_and_gradients():
    torch.manual_seed(0)
    vae = autoencoders.build("conv_vae", SMALL)((1, 28, 28))
    x = torch.rand(5, 1, 28, 28)
    mean, log_variance = vae.encode(x)
    assert mean.shape == log_variance.shape == (5, 3, 7, 7)
    assert vae.decode(mean).shape == x.shape
    vae_loss(vae, x, torch.randn_like(mean), 0.1).sum().backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    images = to_uint8(x)
    decoded = decode_images(vae, mean, batch_size=2)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == images.shape
    whole, by_two = encode_images(vae, images), encode_images(vae, images, batch_size=2)
    torch.testing.assert_close(tuple(by_two), tuple(whole), rtol=1e-4, atol=1e-5)


def test_autoencoder_refuses_odd_sizes():
    with pytest.raises(InputError, match=r"30 × 28 pixels .* multiples of 4"):
        autoencoders.build("conv_vae", SMALL)((1, 30, 28))


def test_likelihood_is_torchs():
    logits, x = torch.randn(4, 1, 5, 5), torch.randint(2, (4, 1, 5, 5)).float()
    expected = -torch.distributions.Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli_nll(logits, x), expected)
