"""Autoencoders whose latents scale with their images: the resampling, the loss, and what a training by it changes."""

import math
import re

import pytest
import torch
import torch.nn.functional as nnf

from ldm.errors import InputError
from ldm.networks.autoencoder import LIKELIHOODS, vae_loss
from ldm.networks.options import autoencoders
from ldm.networks.scaling import heights, resized, scaled_vae_loss

SMALL = {"latent_channels": 2, "width": 16, "blocks": 1, "smoothing": 2}


@pytest.mark.parametrize("size", [(16, 20), (21, 9), (28, 30)])
def test_resizing_is_bilinear_with_antialiasing(size):
    x = torch.rand(2, 3, 28, 30)
    torch.testing.assert_close(resized(x, *size), nnf.interpolate(x, size, mode="bilinear", antialias=True))


def listed(found):
    return {height: indices.tolist() for height, indices in found.items()}


def test_heights_take_turns_and_depend_on_the_position_alone():
    whole = listed(heights(range(12), 0.5, 7))
    assert whole == {7: [0, 2, 4, 6, 8, 10], 4: [1, 7], 5: [3, 9], 6: [5, 11]}
    assert listed(heights(range(6, 12), 0.5, 7)) == {7: [0, 2, 4], 4: [1], 5: [3], 6: [5]}
    assert listed(heights(range(5), 1.0, 3)) == {2: [0, 1, 2, 3, 4]}
    for share in (0.1, 1 / 3, 0.9):
        scaled = 1000 - len(heights(range(1000), share, 8)[8])
        assert abs(scaled - 1000 * share) <= 1


def test_a_grid_that_has_no_smaller_one():
    words = "scaled 0.5: latents of 2 places a side cannot be made smaller; set scaled to 0, or take a smaller patch"
    with pytest.raises(InputError, match=re.escape(words)):
        heights(range(4), 0.5, 2)


@pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
def test_the_loss_by_hand(likelihood):
    """At 6 places of 7 an image has 24 pixels of 28; at 7 the loss is that of the autoencoder."""
    torch.manual_seed(0)
    vae = autoencoders.build("conv_vae", SMALL)((1, 28, 28))
    x, eps = torch.rand(4, 1, 28, 28), torch.randn(4, 2, 7, 7)
    a, b = torch.tensor([0, 2]), torch.tensor([1, 3])
    found = scaled_vae_loss(vae, x, eps, {7: a, 6: b}, 0.3, likelihood)
    torch.testing.assert_close(found[a], vae_loss(vae, x[a], eps[a], 0.3, likelihood))
    posterior = vae.encode(x[b])
    decoded = vae.decode(resized(posterior.draw(eps[b]), 6, 6))
    expected = LIKELIHOODS[likelihood](decoded, resized(x[b], 24, 24)) * (28 / 24) ** 2
    torch.testing.assert_close(found[b], expected + 0.3 * posterior.kl_divergence().flatten(1).sum(1))


@pytest.mark.parametrize("shape", [(3, 30, 27), (1, 20, 40), (1, 9, 70)])
def test_images_that_patches_do_not_fill(shape):
    """An image of one colour is one of that colour in every size: what is padded inside is scaled as the rest is."""
    torch.manual_seed(0)
    vae = autoencoders.build("conv_vae", {"width": 8, "smoothing": 2, "patch": 4})(shape)
    grid = vae.encode(torch.rand(1, *shape)).mean.shape[1:]
    x, eps, height = torch.full((4, *shape), 0.25), torch.zeros(4, *grid), grid[1] - 1
    sides = []

    def decode(z):  # the logit of 0.25
        sides.append(z.shape[-2:])
        return torch.full((len(z), shape[0], *(4 * side for side in z.shape[-2:])), math.log(1 / 3))

    vae.decode = decode
    found = scaled_vae_loss(vae, x, eps, {height: torch.arange(4)}, 0.0, "laplace")
    assert sides == [(height, round(grid[2] * height / grid[1]))]
    least = math.log(2e-3) * math.prod(shape)  # a Laplace density without errors, of scale 1e-3
    torch.testing.assert_close(found, torch.full((4,), least), rtol=1e-3, atol=0)


def test_training_by_it_makes_small_latents_decode_to_small_images():
    torch.manual_seed(0)
    rows = torch.arange(28.0)[:, None]
    x = torch.stack([((rows - at).abs() < 4).float().expand(28, 28) for at in torch.randint(4, 24, (64,))])[:, None]

    def error_after_training(share: float) -> float:
        torch.manual_seed(1)
        vae = autoencoders.build("conv_vae", SMALL)((1, 28, 28))
        optimizer, sizes = torch.optim.Adam(vae.parameters(), 3e-3), heights(range(64), share, 7)
        for _ in range(150):
            optimizer.zero_grad()
            scaled_vae_loss(vae, x, torch.randn(64, 2, 7, 7), sizes, 0.02).mean().backward()
            optimizer.step()
        with torch.inference_mode():
            small = vae.images(resized(vae.encode(x).mean, 5, 5))
        return (small - resized(x, 20, 20)).square().mean().item()

    assert error_after_training(0.5) < error_after_training(0.0) / 2
