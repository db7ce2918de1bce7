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
    assert distributed.data_parallel(network, len) is len  # one process computes the loss as it is
    be(monkeypatch, 0, 2)
    with pytest.raises(InputError, match=r"dropout 0\.1 \(1\) "):
        distributed.data_parallel(network, lambda: torch.zeros(()))
