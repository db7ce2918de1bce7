"""The autoencoders: shapes, gradients, batches, and the likelihood of pixels."""

import pytest
import torch
import torch.nn.functional as nnf

from ldm.errors import InputError
from ldm.images import to_uint8
from ldm.networks.autoencoder import (
    IdentityAutoencoder,
    bernoulli_nll,
    decode_images,
    encode_images,
    fitting_latent_channels,
    fitting_patch,
    gaussian_nll,
    laplace_nll,
    vae_loss,
)
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


def test_a_norm_of_one_value_is_refused():
    with pytest.raises(InputError, match="for a grid of one place, each group of the norm is one channel"):
        autoencoders.build("conv_vae", {"width": 8, "patch": 28})((1, 28, 28))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 30, 27), (1, 5, 100), (3, 64, 64)])
def test_images_of_any_size(shape):
    """What patches do not fill is padded inside, and cut again; the padding is no part of what is decoded."""
    torch.manual_seed(0)
    vae = autoencoders.build("conv_vae", {"width": 16, "smoothing": 2})(shape)
    x = torch.rand(1, *shape)
    mean = vae.encode(x).mean
    patch = fitting_patch(shape)
    channels, height, width = fitting_latent_channels(shape, patch), -(-shape[1] // patch), -(-shape[2] // patch)
    assert mean.shape[1:] == (channels, height, width)
    options = {"width": 16, "smoothing": 2, "patch": patch, "latent_channels": channels}
    whole = autoencoders.build("conv_vae", options)((shape[0], height * patch, width * patch))
    whole.load_state_dict(vae.state_dict())
    padding = (0, width * patch - shape[2], 0, height * patch - shape[1])
    torch.testing.assert_close(mean, whole.encode(nnf.pad(x, padding, "replicate")).mean)
    torch.testing.assert_close(vae.images(mean), whole.images(mean)[..., : shape[1], : shape[2]])


@pytest.mark.parametrize(
    ("shape", "patch", "channels"),
    [((1, 28, 28), 4, 2), ((3, 32, 32), 4, 4), ((3, 48, 20), 4, 4), ((3, 64, 64), 8, 16), ((1, 128, 128), 16, 32)],
)
def test_sizes_that_fit(shape, patch, channels):
    assert (fitting_patch(shape), fitting_latent_channels(shape, patch)) == (patch, channels)


def test_likelihood_is_torchs():
    logits, x = torch.randn(4, 1, 5, 5), torch.randint(2, (4, 1, 5, 5)).float()
    expected = -torch.distributions.Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli_nll(logits, x), expected)


def test_the_width_of_a_likelihood_is_the_best_one_for_the_batch():
    """By torch's densities, and by wider and narrower ones."""
    logits, x = torch.randn(4, 3, 5, 5), torch.rand(4, 3, 5, 5)
    errors = logits.sigmoid() - x
    normal, laplace = torch.distributions.Normal, torch.distributions.Laplace
    for nll, form, best in (
        (gaussian_nll, normal, errors.square().mean().sqrt()),
        (laplace_nll, laplace, errors.abs().mean()),
    ):
        found = nll(logits, x)
        assert found.shape == (4,)
        expected = -form(logits.sigmoid(), best).log_prob(x).sum((1, 2, 3))
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=0.5)
        for factor in (0.8, 1.25):
            assert -form(logits.sigmoid(), factor * best).log_prob(x).sum() > found.sum()
