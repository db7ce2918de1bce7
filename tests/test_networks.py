"""The U-Net, the autoencoder and the classifier: shapes, gradients, and what each part must do."""

import pytest
import torch

from ldm import choices
from ldm.autoencoder import Pixels, bernoulli_nll, decode_images, encode_images, vae_loss
from ldm.classifier import FEATURES, Classifier, augment, in_batches
from ldm.errors import InputError
from ldm.latents import Standardiser, active_dimensions, draw, kl_divergence
from ldm.networks.unet_model import LinearAttention
from ldm.pixels import from_uint8, to_uint8

UNET = {"patch": 1, "width": 16, "multipliers": [1, 2], "block": "resnet", "blocks": 1, "attention": "none", "resampling": "learned"}
RESIDUAL = {"residual": {"width": 8, "blocks": 2}}
UNET |= {"embedding": 32, "groups": 8, "heads": 2, "dropout": 0.0}


@pytest.mark.parametrize("shape", [(2, 7, 7), (1, 8, 8), (4, 5, 6)])
@pytest.mark.parametrize(
    "options",
    [
        {"multipliers": [1]},
        {"multipliers": [1, 2]},
        {"multipliers": [1, 1, 2]},
        {"block": "convnext"},
        {"attention": "linear"},
        {"resampling": "fixed"},
        {"block": "convnext", "attention": "linear", "resampling": "fixed", "blocks": 2, "dropout": 0.1},
    ],
)
def test_unet_shapes_and_gradients(shape, options):
    torch.manual_seed(0)
    unet = choices.build("networks", "unet", UNET | options, shape)
    x, t = torch.randn(3, *shape), torch.rand(3)
    assert torch.equal(unet(x, t), torch.zeros_like(x))  # the head starts at zero
    for parameter in unet.parameters():  # so that every gradient can flow
        torch.nn.init.normal_(parameter, std=0.1)
    out = unet(x, t)
    assert out.shape == x.shape
    out.square().sum().backward()
    dead = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_unet_sees_time_and_keeps_samples_apart():
    torch.manual_seed(0)
    unet = choices.build("networks", "unet", UNET, (2, 7, 7))
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(4, 2, 7, 7), torch.rand(4)
    out = unet(x, t)
    assert not torch.allclose(unet(x, t * 0.5), out, atol=1e-3)
    torch.testing.assert_close(unet(x[2:3], t[2:3])[0], out[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 20}, "width 20 times the multiplier 1 gives 20 channels, not a multiple of 8 groups"),
        ({"multipliers": [2], "heads": 3}, "heads 3 do not divide the 32 channels"),
        ({"attention": "linear", "heads": 32}, "heads 32 do not divide the 16 channels"),
        ({"patch": 2}, "2 does not divide the grid of 7 × 7"),
        ({"block": "vgg"}, "block: 'vgg' will not do"),
        ({"multipliers": []}, "multipliers"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_unets_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        choices.build("networks", "unet", UNET | options, (2, 7, 7))


def test_linear_attention_by_its_definition():
    """Each place reads a mixture, by its softmax over channels, of the channels' averages, each by its softmax over places."""
    torch.manual_seed(0)
    unet = choices.build("networks", "unet", UNET | {"attention": "linear"}, (2, 7, 7))
    layer = next(m for m in unet.modules() if isinstance(m, LinearAttention))
    q, k, v = torch.randn(3, 1, 1, 5, 4, dtype=torch.float64)
    wanted = torch.zeros(5, 4, dtype=torch.float64)
    for place in range(5):
        for channel in range(4):
            average = (k[0, 0, :, channel].exp()[:, None] * v[0, 0]).sum(0) / k[0, 0, :, channel].exp().sum()
            wanted[place] += q[0, 0, place, channel].exp() / q[0, 0, place].exp().sum() * average
    torch.testing.assert_close(layer.attend(q, k, v)[0, 0], wanted)


def test_a_patch_sees_the_grid_it_stands_for():
    torch.manual_seed(0)
    unet = choices.build("networks", "unet", UNET | {"patch": 2}, (1, 8, 12))
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 1, 8, 12), torch.rand(2)
    assert unet(x, t).shape == x.shape
    assert unet.stem.weight.shape[1] == 4


CONV_UNET = {"channels": [16, 24, 32], "blocks": 2, "embedding": 16}


@pytest.mark.parametrize("shape", [(2, 7, 7), (1, 8, 12)])
def test_the_tutorials_unet(shape):
    torch.manual_seed(0)
    unet = choices.build("networks", "conv_unet", CONV_UNET, shape)
    x, t = torch.randn(4, *shape), torch.rand(4)
    out = unet(x, t)
    assert out.shape == x.shape
    assert not torch.allclose(unet(x, t * 0.5), out, atol=1e-4)
    torch.testing.assert_close(unet(x[2:3], t[2:3])[0], out[2], rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    dead = [name for name, p in unet.named_parameters() if not p.grad.abs().sum() > 0 and not name.endswith("conv.bias")]
    assert dead == []  # a bias before an instance norm does nothing
    with pytest.raises(InputError, match="5 levels are too many for a grid of 7 × 7"):
        choices.build("networks", "conv_unet", CONV_UNET | {"channels": [8] * 5}, (2, 7, 7))


def test_pixels_are_their_own_latents():
    images = torch.randint(256, (7, 3, 6, 5), dtype=torch.uint8)
    mean, log_variance = encode_images(Pixels(), images, 3)
    assert log_variance.shape == (7, 1, 1, 1)
    z = draw(mean, log_variance, torch.randn(mean.shape))
    assert torch.equal(decode_images(Pixels(), z), images)
    fitted = Standardiser.fit(mean, log_variance)
    torch.testing.assert_close(fitted.std, mean.double().std((0, 2, 3), correction=0))


def test_autoencoder_shapes_and_gradients():
    torch.manual_seed(0)
    vae = choices.build("autoencoders", "conv", {"latent_channels": 3, "width": 8, "blocks": 1, "smoothing": 2}, (1, 28, 28))
    x = torch.rand(5, 1, 28, 28)
    mean, log_variance = vae.encode(x)
    assert mean.shape == log_variance.shape == (5, 3, 7, 7)
    assert vae.decode(mean).shape == x.shape
    vae_loss(vae, x, torch.randn_like(mean), 0.1).sum().backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    images = to_uint8(x)
    assert decode_images(vae, mean, batch_size=2).dtype == torch.uint8
    torch.testing.assert_close(encode_images(vae, images, batch_size=2)[0], encode_images(vae, images)[0], rtol=1e-4, atol=1e-5)


def test_autoencoder_refuses_odd_sizes():
    with pytest.raises(InputError, match="30 × 28 pixels cannot be encoded"):
        choices.build("autoencoders", "conv", {"latent_channels": 3, "width": 8, "blocks": 1, "smoothing": 2}, (1, 30, 28))


def test_kl_and_likelihood_are_torchs():
    mean, log_variance = torch.randn(2, 4, 2, 3, 3, dtype=torch.float64)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, log_variance), wanted)
    logits, x = torch.randn(4, 1, 5, 5), torch.randint(2, (4, 1, 5, 5)).float()
    torch.testing.assert_close(bernoulli_nll(logits, x), -torch.distributions.Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3)))


def test_standardised_draws_have_unit_moments_and_restore():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(20_000, 2, 3, 3, generator=generator) * torch.tensor([0.5, 3.0])[:, None, None] + 1.5
    log_variance = torch.randn(20_000, 2, 3, 3, generator=generator) - 1
    fitted = Standardiser.fit(mean, log_variance)
    assert fitted.mean.dtype == torch.float64
    z = draw(mean, log_variance, torch.randn(mean.shape, generator=generator))
    x = fitted.standardise(z)
    assert x.dtype == torch.float32
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0, 0], abs=0.01)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.01)
    torch.testing.assert_close(fitted.restore(x), z, rtol=1e-5, atol=1e-5)


def test_active_dimensions_counts_those_that_vary():
    mean = torch.zeros(500, 2, 3, 3)
    mean[:, 0, 1] = torch.randn(500, 3)
    mean[:, 1, 2, 2] = 0.05 * torch.randn(500)
    assert active_dimensions(mean) == 3


@pytest.mark.parametrize("config", [{"classifier": "conv", "classifiers": {"conv": {"width": 8}}}, {"classifier": "residual", "classifiers": RESIDUAL}])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 20)])
def test_classifiers_have_128_features(config, shape):
    torch.manual_seed(0)
    classifier = Classifier.from_config(config, shape, 10).eval()
    images = torch.randint(256, (50, *shape), dtype=torch.uint8)
    features = in_batches(classifier.features, images, batch_size=16)
    assert features.shape == (50, FEATURES) == (50, 128)
    torch.testing.assert_close(features, in_batches(classifier.features, images), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(classifier.logits(features), in_batches(classifier, images))


def test_a_quarter_turn_of_an_image_that_is_not_square():
    """45° twice: a bar lies across what it stood along, at its length; in normalised coordinates alone it would be sheared."""
    x = torch.zeros(1, 1, 40, 20)
    x[..., 14:26, 9:11] = 1
    generator = torch.Generator().manual_seed(0)
    turned = [augment(x, generator, shift=0.0, rotation=45.0, scale=0.0) for _ in range(30)]
    lengths = []
    for image in turned:
        ys, xs = torch.meshgrid(torch.arange(40.0), torch.arange(20.0), indexing="ij")
        weight = image[0, 0] / image.sum()
        dy, dx = ys - (weight * ys).sum(), xs - (weight * xs).sum()
        lengths.append(float((weight * (dy**2 + dx**2)).sum()))  # the bar's moment of inertia, which no turn changes
    assert max(lengths) / min(lengths) < 1.1


def test_a_residual_classifier_needs_even_sides():
    with pytest.raises(InputError, match="images of 27 × 27 pixels do not halve"):
        choices.build("classifiers", "residual", RESIDUAL["residual"], (1, 27, 27))


def test_augmentation_stays_within_its_bounds():
    x = torch.zeros(200, 1, 28, 28)
    x[:, :, 14, 14] = 1
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(augment(x, generator, shift=0.0, rotation=0.0, scale=0.0), x, rtol=0, atol=1e-5)
    moved = augment(x, generator, shift=2.0, rotation=0.0, scale=0.0)[:, 0]
    rows = (moved.sum(2) * torch.arange(28)).sum(1) / moved.sum((1, 2)) - 14
    assert 1.5 < rows.abs().max() < 2.01
    assert rows.mean().abs() < 0.3


def test_pixels_round_trip():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(values)), values)
    assert to_uint8(torch.tensor([-0.2, 1.7, 0.5])).tolist() == [0, 255, 128]
