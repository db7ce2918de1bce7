"""The classifiers and their features, and the augmentation of the images that they are trained on."""

import pytest
import torch
import torch.nn.functional as nnf

from ldm.networks.classifier import Classifier, augment, in_batches
from ldm.networks.options import FEATURES, classifiers

RESIDUAL = {"width": 8, "blocks": 2}
CONFIGS = {"conv": {"width": 8}, "residual": RESIDUAL}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 20)])
def test_classifiers_have_128_features(name, shape):
    torch.manual_seed(0)
    config = {"classifier": name, "classifiers": {name: CONFIGS[name]}}
    classifier = Classifier.from_config(config, shape, 10).eval()
    images = torch.randint(256, (50, *shape), dtype=torch.uint8)
    features = in_batches(classifier.features, images, batch_size=16)
    assert features.shape == (50, FEATURES) == (50, 128)
    torch.testing.assert_close(features, in_batches(classifier.features, images), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        logits = classifier.logits(features)
    assert logits.shape == (50, 10)
    torch.testing.assert_close(logits, in_batches(classifier, images))


@pytest.mark.parametrize("shape", [(1, 27, 27), (3, 1, 1), (1, 5, 28)])
def test_a_residual_classifier_takes_odd_sides(shape):
    """A line of zeros at the lower and the right edge is all that it adds."""
    body = classifiers.build("residual", RESIDUAL)(shape).eval()
    x = torch.rand(2, *shape)
    even = nnf.pad(x, (0, shape[2] % 2, 0, shape[1] % 2))
    assert torch.equal(body(x), body[1:](even))


def test_a_turn_of_an_image_that_is_not_square_shears_nothing():
    """Turned by up to 45°, a bar keeps its length; in normalised coordinates alone it would be sheared."""
    x = torch.zeros(1, 1, 40, 20)
    x[..., 14:26, 9:11] = 1
    generator = torch.Generator().manual_seed(0)
    turned = [augment(x, generator, shift=0.0, rotation=45.0, scale=0.0) for _ in range(30)]
    lengths, angles = [], []
    for image in turned:
        ys, xs = torch.meshgrid(torch.arange(40.0), torch.arange(20.0), indexing="ij")
        weight = image[0, 0] / image.sum()
        dy, dx = ys - (weight * ys).sum(), xs - (weight * xs).sum()
        lengths.append(float((weight * (dy**2 + dx**2)).sum()))  # the bar's moment of inertia, which no turn changes
        angle = 0.5 * torch.atan2(2 * (weight * dx * dy).sum(), (weight * (dy**2 - dx**2)).sum())
        angles.append(abs(float(angle.rad2deg())))
    assert max(lengths) / min(lengths) < 1.1
    assert 35 < max(angles) < 46


def test_augmentation_stays_within_its_bounds():
    x = torch.zeros(200, 1, 28, 28)
    x[:, :, 14, 14] = 1
    generator = torch.Generator().manual_seed(0)
    unmoved = augment(x, generator, shift=0.0, rotation=0.0, scale=0.0)
    torch.testing.assert_close(unmoved, x, rtol=0, atol=1e-5)
    moved = augment(x, generator, shift=2.0, rotation=0.0, scale=0.0)[:, 0]
    for side in (1, 2):  # down, and to the right
        centres = (moved.sum(3 - side) * torch.arange(28)).sum(1) / moved.sum((1, 2)) - 14
        assert 1.5 < centres.abs().max() < 2.01
        assert centres.mean().abs() < 0.3
    x[:, :, 10:18, 10:18] = 1
    areas = augment(x, generator, shift=0.0, rotation=0.0, scale=0.2).sum((1, 2, 3)) / 64
    assert 1.2**-2 - 0.02 < areas.min() < 0.75
    assert 1.4 < areas.max() < 0.8**-2 + 0.02
