"""The perceptron for points: one network for all noise levels, or one for each."""

import torch

from ldm.networks import networks


def test_each_level_has_its_own_network():
    torch.manual_seed(0)
    options = {"width": 8, "depth": 2, "embedding": 4, "experts": 5}
    network = networks.build("mlp", options)((2, 1, 1))
    x, t = torch.randn(5, 2, 1, 1), torch.arange(1, 6) / 5
    out = network(x, t)
    assert out.shape == x.shape
    out[2].sum().backward()
    for layer in network.layers:
        used = layer.weight.grad.flatten(1).abs().sum(1) > 0
        assert used.tolist() == [False, False, True, False, False]
    one = networks.build("mlp", options | {"experts": 1})((2, 1, 1))
    for layer, experts in zip(one.layers, network.layers, strict=True):
        layer.weight.data, layer.bias.data = experts.weight.data[2:3], experts.bias.data[2:3]
    torch.testing.assert_close(one(x, t)[2], out[2])
