"""The training loop: it learns, averages, and survives non-finite steps."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from ldm.optimisation import Optimisation
from ldm.training import Batches, Diverged, Record, Training, learning_rate

SETTINGS = {
    "steps": 60,
    "batch_size": 8,
    "lr": 0.05,
    "lr_final": 0.1,
    "warmup": 10,
    "betas": [0.9, 0.99],
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "ema_decay": 0.9,
    "max_skipped": 5,
    "record_every": 10,
    "precision": {"cpu": "fp32", "cuda": "fp32"},
}


def settings(**changes) -> Optimisation:
    return Optimisation.parse(SETTINGS | changes, "optimisation")


def train(network: nn.Module, loss, settings: Optimisation) -> Iterator[Record]:
    """The records of a training."""
    training = Training(network, loss, settings, Batches(8, 8, torch.Generator()))
    while training.step < settings.steps:
        if record := training.advance():
            yield record


def regression(bad_steps=(), bad_gradients=()):
    """A linear layer, and its loss on fixed data, made non-finite at some steps."""
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 1), torch.randn(32, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    step = 0

    def loss() -> torch.Tensor:
        nonlocal step
        step += 1
        value = (layer(x) - y).square().mean()
        if step in bad_steps:
            return value * math.nan
        if step in bad_gradients:  # finite loss, infinite gradient
            return value + (layer.weight * 0).abs().sqrt().sum()
        return value

    return layer, loss


def test_it_learns_and_records():
    layer, loss = regression()
    records = list(train(layer, loss, settings(steps=300)))
    assert [r.step for r in records] == list(range(10, 301, 10))
    assert records[-1].loss < 1e-3 * records[0].loss
    assert records[-1].skipped == 0
    assert not records[-1].averaged.training


def test_average_is_the_exponential_one():
    layer, loss = regression()
    seen = []

    def watched() -> torch.Tensor:
        seen.append(layer.weight.detach().clone())
        return loss()

    record = list(train(layer, watched, settings(steps=20)))[-1]
    seen.append(layer.weight.detach().clone())
    wanted = seen[1]  # the average starts at the weights after the first step
    for n, weight in enumerate(seen[2:], 1):
        decay = min(0.9, (1 + n) / (10 + n))  # the ramp forgets the first weights
        wanted = decay * wanted + (1 - decay) * weight
    torch.testing.assert_close(record.averaged.weight, wanted)


@pytest.mark.parametrize("kind", ["bad_steps", "bad_gradients"])
def test_a_non_finite_step_changes_nothing(kind):
    layer, loss = regression(**{kind: (7,)})
    weights = []

    def watched() -> torch.Tensor:
        weights.append(layer.weight.detach().clone())
        return loss()

    *_, record = train(layer, watched, settings(steps=20))
    assert torch.equal(weights[6], weights[7])  # before and after step 7
    assert not torch.equal(weights[7], weights[8])
    assert record.skipped == 1
    assert math.isfinite(record.loss)
    assert layer.weight.isfinite().all()


def test_too_many_bad_steps_end_the_run_with_the_last_good_state():
    layer, loss = regression(bad_steps=range(21, 100))
    records = []
    with pytest.raises(Diverged, match=r"10 steps in a row, up to step 30, had a non-finite loss or gradient; try a lower lr \(now 0\.05\)") as caught:
        records.extend(train(layer, loss, settings(max_skipped=5)))
    assert all(p.isfinite().all() for p in caught.value.averaged.parameters())


def test_a_non_finite_step_leaves_batch_norm_alone():
    """One batch overflows in the forward pass: the running statistics, and their average, stay finite."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), torch.randn(32, 3)
    step = 0

    def loss() -> torch.Tensor:
        nonlocal step
        step += 1
        return network(x * (math.inf if step == 7 else 1)).square().mean()

    *_, record = train(network, loss, settings(steps=20))
    assert record.skipped == 1
    for module in (network, record.averaged):
        assert all(tensor.isfinite().all() for tensor in module.state_dict().values())
    assert network[1].num_batches_tracked == 19


def test_bad_steps_far_apart_do_not_end_the_run():
    layer, loss = regression(bad_steps=range(5, 60, 5))
    *_, record = train(layer, loss, settings(max_skipped=2))
    assert record.skipped == 11


def test_learning_rate_warms_up_and_decays():
    s = settings(steps=110)
    assert learning_rate(s, 1) == pytest.approx(0.005)
    assert learning_rate(s, 10) == pytest.approx(0.05)
    assert learning_rate(s, 60) == pytest.approx(0.05 * 0.55)
    assert learning_rate(s, 110) == pytest.approx(0.005)


def test_batches_pass_over_all_images_each_epoch():
    order = Batches(10, 4, torch.Generator().manual_seed(0))
    indices = torch.cat([next(order) for _ in range(10)]).view(4, 10)  # 40 indices: 4 epochs
    assert all(sorted(epoch) == list(range(10)) for epoch in indices.tolist())
    assert len({tuple(epoch) for epoch in indices.tolist()}) > 1


def test_bf16_is_used_where_it_is_chosen():
    layer = nn.Linear(3, 1)
    kinds = []

    def loss() -> torch.Tensor:
        out = layer(torch.randn(8, 3))
        kinds.append(out.dtype)
        return out.float().square().mean()

    list(train(layer, loss, settings(steps=2, precision={"cpu": "bf16", "cuda": "fp32"})))
    list(train(layer, loss, settings(steps=2)))
    assert kinds == [torch.bfloat16] * 2 + [torch.float32] * 2
