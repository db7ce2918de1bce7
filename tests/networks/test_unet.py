"""The U-Nets: shapes, gradients, and what each part must do."""

import pytest
import torch
import torch.nn.functional as nnf

from ldm.errors import InputError
from ldm.networks.options import networks
from ldm.networks.unet import Downsample, LinearAttention

UNET = {"width": 16, "multipliers": [1, 2], "blocks": 1, "embedding": 32, "groups": 8, "heads": 2}
CONV_UNET = {"channels": [16, 24, 32], "blocks": 2, "embedding": 16}


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
    unet = networks.build("unet", UNET | options)(shape)
    x, t = torch.randn(3, *shape), torch.rand(3)
    assert torch.equal(unet(x, t), torch.zeros_like(x))  # the head starts at zero
    for parameter in unet.parameters():  # so that every gradient can flow
        torch.nn.init.normal_(parameter, std=0.1)
    out = unet(x, t)
    assert out.shape == x.shape
    out.square().sum().backward()
    dead = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize("patch", [1, 2])
def test_images_of_classes(patch):
    """0 at first; then each class has its own, which a shift of the whole grid by its embedding could not make."""
    torch.manual_seed(0)
    options = UNET | {"class_images": True, "patch": patch}
    unet = networks.build("unet", options)((2, 4, 6), classes=3)
    assert not unet.class_images.weight.any()
    assert unet.class_images(torch.tensor([1])).shape == (1, 16, 4 // patch, 6 // patch)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t, labels = torch.randn(2, 2, 4, 6), torch.rand(2), torch.tensor([0, 2])
    before = unet(x, t, labels)
    before.square().sum().backward()
    assert (unet.class_images.weight.grad.abs().sum(1) > 0).tolist() == [True, False, True]
    with torch.no_grad():
        unet.class_images.weight[2] += torch.randn_like(unet.class_images.weight[2])
    after = unet(x, t, labels)
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1], atol=1e-3)
    with torch.no_grad():
        unet.class_images.weight[2] = torch.eye(1, unet.class_images.weight.shape[1])
    assert unet.class_images(torch.tensor([2]))[0].nonzero().tolist() == [[0, 0, 0]]  # one channel at one place
    assert networks.build("unet", options)((2, 4, 6)).class_images is None  # without classes there is none


def test_unet_sees_time_and_keeps_samples_apart():
    torch.manual_seed(0)
    unet = networks.build("unet", UNET)((2, 7, 7))
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
        ({"groups": 16, "multipliers": [1, 1, 1, 1]}, "at resolution 4 each of 16 groups is one channel at one place"),
        ({"block": "vgg"}, "block: 'vgg' will not do"),
        ({"multipliers": []}, "multipliers"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_unets_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        networks.build("unet", UNET | options)((2, 7, 7))


def test_a_grid_one_place_wide_is_halved_alike_each_time():
    """The gradient in bf16 is the same, whatever lay before in the memory that it takes."""
    torch.manual_seed(0)
    unet = networks.build("unet", UNET)((2, 6, 1))
    halving = next(module for module in unet.modules() if isinstance(module, Downsample))
    x, gradients = torch.randn(64, 16, 6, 1), []
    for value in (1.0, 1e4, 1e8):
        freed = [torch.full((16 * 16 * 9 * size,), value) for size in (1, 2, 4) for _ in range(50)]
        del freed
        halving.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            halving(x, torch.empty(0)).float().square().sum().backward()
        gradients.append(halving.conv.weight.grad.clone())
    assert torch.equal(gradients[1], gradients[0])
    assert torch.equal(gradients[2], gradients[0])


def test_linear_attention_by_its_definition():
    """Each place reads, by its softmax over channels, the channels' averages, each by its softmax over places."""
    torch.manual_seed(0)
    unet = networks.build("unet", UNET | {"attention": "linear"})((2, 7, 7))
    layer = next(m for m in unet.modules() if isinstance(m, LinearAttention))
    q, k, v = torch.randn(3, 1, 1, 5, 4, dtype=torch.float64)
    expected = torch.zeros(5, 4, dtype=torch.float64)
    for place in range(5):
        for channel in range(4):
            average = (k[0, 0, :, channel].exp()[:, None] * v[0, 0]).sum(0) / k[0, 0, :, channel].exp().sum()
            expected[place] += q[0, 0, place, channel].exp() / q[0, 0, place].exp().sum() * average
    torch.testing.assert_close(layer.attend(q, k, v)[0, 0], expected)


def test_a_patch_sees_the_grid_it_stands_for():
    torch.manual_seed(0)
    unet = networks.build("unet", UNET | {"patch": 2})((1, 8, 12))
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 1, 8, 12), torch.rand(2)
    whole = networks.build("unet", UNET | {"patch": 1})((4, 4, 6))
    whole.load_state_dict(unet.state_dict())
    expected = nnf.pixel_shuffle(whole(nnf.pixel_unshuffle(x, 2), t), 2)
    torch.testing.assert_close(unet(x, t), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 7, 7), (1, 8, 12)])
def test_the_tutorials_unet(shape):
    torch.manual_seed(0)
    unet = networks.build("conv_unet", CONV_UNET)(shape)
    x, t = torch.randn(4, *shape), torch.rand(4)
    out = unet(x, t)
    assert out.shape == x.shape
    assert not torch.allclose(unet(x, t * 0.5), out, atol=1e-4)
    torch.testing.assert_close(unet(x[2:3], t[2:3])[0], out[2], rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    dead = [
        name for name, p in unet.named_parameters() if not p.grad.abs().sum() > 0 and not name.endswith("conv.bias")
    ]
    assert dead == []  # a bias before an instance norm does nothing
    with pytest.raises(InputError, match=r"channels: 5 .* too many for a grid of 7 × 7"):
        networks.build("conv_unet", CONV_UNET | {"channels": [8] * 5})((2, 7, 7))
