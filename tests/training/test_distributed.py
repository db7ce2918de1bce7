"""How several processes share a run: each has its slice of a batch, and its items of a list."""

import pytest
import torch
from torch import nn

from ldm.errors import InputError
from ldm.training import distributed


def be(monkeypatch, rank: int, world_size: int) -> None:
    """Let the library take this process for one of several."""
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)


@pytest.mark.parametrize(("items", "processes"), [(1, 2), (5, 2), (20, 3), (0, 2), (7, 7)])
def test_local_items_are_all_of_a_list_in_order(monkeypatch, items, processes):
    parts = []
    for rank in range(processes):
        be(monkeypatch, rank, processes)
        parts.append(distributed.local_items(range(items)))
    assert [item for part in parts for item in part] == list(range(items))
    assert len(parts[0]) == max(map(len, parts))


def test_local_slices_are_equal_and_make_up_the_batch(monkeypatch):
    batch, parts = torch.arange(12), []
    for rank in range(3):
        be(monkeypatch, rank, 3)
        parts.append(batch[distributed.local_slice(12)])
    assert [len(part) for part in parts] == [4, 4, 4]
    assert torch.equal(torch.cat(parts), batch)
    with pytest.raises(InputError, match="batch_size 13 is not divisible by 3 processes"):
        distributed.local_slice(13)


def test_dropout_is_refused_in_several_processes(monkeypatch):
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    distributed.check_draws_nothing(network)  # one process may
    be(monkeypatch, 0, 2)
    with pytest.raises(InputError, match=r"dropout 0\.1 \(1\) "):
        distributed.check_draws_nothing(network)
    distributed.check_draws_nothing(network[0])


def test_gradients_are_averaged_in_place(monkeypatch):
    """As if the other process had threes alone; what has no gradient is left alone, whatever its memory's layout."""
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 1, 1)).to(memory_format=torch.channels_last)
    network[0](torch.randn(1, 2, 5, 5)).square().sum().backward()
    before = [weight.grad.clone() for weight in network[0].parameters()]
    be(monkeypatch, 0, 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda x: x.add_(3))
    distributed.average_gradients(network)
    for weight, gradient in zip(network[0].parameters(), before, strict=True):
        assert torch.equal(weight.grad, (gradient + 3) / 2)
    assert all(weight.grad is None for weight in network[1].parameters())
