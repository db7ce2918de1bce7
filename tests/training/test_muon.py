"""Muon moves kernels by orthogonal matrices, as torch's own does."""

import pytest
import torch
from torch import nn

from ldm.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (48, 48)])
def test_the_orthogonal_factor_has_singular_values_near_one(shape):
    matrices = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrices)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.3  # those near 0, which a square Gaussian matrix has, are not lifted to 1
    assert values.max() < 1.25
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    exact = u @ v
    cosine = (found * exact).sum((1, 2)) / (found.norm(dim=(1, 2)) * exact.norm(dim=(1, 2)))
    assert cosine.min() > 0.95


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_it_takes_the_steps_of_torch(decay):
    """torch's iterates in bfloat16, so that the directions agree to a few of its rounding errors (2⁻⁸)."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 8, 3, 3), (8, 16, 1, 1), (16, 8, 3, 3)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = [nn.Parameter(k.clone()) for k in start], [nn.Parameter(k.flatten(1).clone()) for k in start]
    optimizer, reference = (
        Muon(ours, 0.1, weight_decay=decay),
        torch.optim.Muon(theirs, 0.1, weight_decay=decay, momentum=0.95),
    )
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.flatten(1)
        optimizer.step()
        reference.step()
    for a, b, k in zip(ours, theirs, start, strict=True):
        moved = (b - k.flatten(1)).norm()
        assert moved > 0.3
        assert (a.flatten(1) - b).norm() < 0.02 * moved


def test_the_memory_layout_does_not_matter():
    plain = nn.Parameter(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)))
    last = nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    for kernel in (plain, last):
        kernel.grad = kernel.detach().clone()
    for kernel in (plain, last):
        Muon([kernel], 0.1).step()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain, last)
