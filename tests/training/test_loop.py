"""The training loop: it learns, averages, and survives non-finite steps."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch._dynamo.utils
from torch import nn

from ldm.errors import InputError
from ldm.training.loop import Batches, Diverged, Record, Training, learning_rate, optimizers
from ldm.training.settings import Optimisation
from stages.runner.parameters import with_settings

SETTINGS = {
    "steps": 60,
    "batch_size": 8,
    "lr": 0.05,
    "lr_final": 0.1,
    "warmup": 10,
    "ema_decay": 0.9,
    "max_skipped": 5,
    "record_every": 10,
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

    def loss(index: torch.Tensor) -> torch.Tensor:
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

    def watched(index: torch.Tensor) -> torch.Tensor:
        seen.append(layer.weight.detach().clone())
        return loss(index)

    record = list(train(layer, watched, settings(steps=20)))[-1]
    seen.append(layer.weight.detach().clone())
    expected = seen[1]  # the average starts at the weights after the first step
    for n, weight in enumerate(seen[2:], 1):
        decay = min(0.9, (1 + n) / (10 + n))  # the ramp forgets the first weights
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(record.averaged.weight, expected)


@pytest.mark.parametrize("kind", ["bad_steps", "bad_gradients"])
def test_a_non_finite_step_changes_nothing(kind):
    layer, loss = regression(**{kind: (7,)})
    weights = []

    def watched(index: torch.Tensor) -> torch.Tensor:
        weights.append(layer.weight.detach().clone())
        return loss(index)

    *_, record = train(layer, watched, settings(steps=20))
    assert torch.equal(weights[6], weights[7])  # before and after step 7
    assert not torch.equal(weights[7], weights[8])
    assert record.skipped == 1
    assert math.isfinite(record.loss)
    assert layer.weight.isfinite().all()


def test_too_many_bad_steps_end_the_run_with_the_last_good_state():
    layer, loss = regression(bad_steps=range(21, 100))
    message = r"10 steps in a row, up to step 30, had a non-finite loss or gradient; try a lower lr \(now 0\.05\)"
    with pytest.raises(Diverged, match=message) as caught:
        list(train(layer, loss, settings()))
    twin, loss = regression()
    record = next(record for record in train(twin, loss, settings()) if record.step == 20)
    assert torch.equal(layer.weight, twin.weight)
    expected = record.averaged.weight
    for n in range(21, 31):  # the average goes on, of weights that do not change
        decay = min(0.9, n / (9 + n))
        expected = decay * expected + (1 - decay) * twin.weight
    torch.testing.assert_close(caught.value.averaged.weight, expected)


def test_a_non_finite_step_leaves_batch_norm_alone():
    """One batch overflows in the forward pass: the running statistics, and their average, stay finite."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), torch.randn(32, 3)
    step = 0

    def loss(index: torch.Tensor) -> torch.Tensor:
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
    assert learning_rate(s, 1, s.lr) == pytest.approx(0.005)
    assert learning_rate(s, 10, s.lr) == pytest.approx(0.05)
    assert learning_rate(s, 60, s.lr) == pytest.approx(0.05 * 0.55)
    assert learning_rate(s, 110, s.lr) == pytest.approx(0.005)


def test_batches_pass_over_all_images_each_epoch():
    order = Batches(10, 4, torch.Generator().manual_seed(0))
    indices = torch.cat([next(order) for _ in range(10)]).view(4, 10)  # 40 indices: 4 epochs
    assert all(sorted(epoch) == list(range(10)) for epoch in indices.tolist())
    assert len({tuple(epoch) for epoch in indices.tolist()}) > 1


def test_bf16_is_used_where_it_is_chosen():
    layer = nn.Linear(3, 1)
    kinds = []

    def loss(index: torch.Tensor) -> torch.Tensor:
        out = layer(torch.randn(8, 3))
        kinds.append(out.dtype)
        return out.float().square().mean()

    list(train(layer, loss, settings(steps=2, precision="bf16")))
    list(train(layer, loss, settings(steps=2)))
    assert kinds == [torch.bfloat16] * 2 + [torch.float32] * 2


def test_a_compiled_network_trains_as_the_plain_one():
    found = []
    for compiled in (False, True):
        layer, loss = regression()
        torch._dynamo.utils.counters.clear()
        *_, record = train(layer, loss, settings(steps=30, compile=compiled))
        assert bool(torch._dynamo.utils.counters["stats"]["unique_graphs"]) == compiled
        assert sorted(record.averaged.state_dict()) == ["bias", "weight"]
        found.append(record.averaged.weight)
    torch.testing.assert_close(*found)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    layer, loss = regression()
    with pytest.raises(InputError, match=r"compile needs a C\+\+ compiler.* 'no-such-compiler'.*; install g\+\+"):
        Training(layer, loss, settings(compile=True), Batches(8, 8, torch.Generator()))


def test_a_step_is_recorded_on_a_gpu_alone():
    layer, loss = regression()
    with pytest.raises(InputError, match="capture records a step of one process on a GPU; set it to false"):
        Training(layer, loss, settings(capture=True), Batches(8, 8, torch.Generator()))


def test_a_step_puts_no_tensor_into_the_place_of_another():
    """What a recorded step writes to must be where the next one reads it."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 1))
    x = torch.randn(8, 1, 5, 5)
    training = Training(
        network,
        lambda index: network(x[index]).square().mean(),
        settings(muon_lr=0.02),
        Batches(8, 8, torch.Generator()),
    )

    def places() -> list[int]:
        kept = [training.index, training.sums, training.average_weight, *network.state_dict().values()]
        kept += training.averaged.state_dict().values()
        for optimizer in training.optimizers.values():
            kept += [group["lr"] for group in optimizer.param_groups]
            kept += [moment for state in optimizer.state.values() for moment in state.values()]
        return [tensor.data_ptr() for tensor in kept]

    training.advance()
    before = places()
    for _ in range(3):
        training.advance()
    assert len(before) > 20
    assert places() == before


def test_muon_moves_kernels_alone():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(1, 4), nn.Flatten(), nn.Linear(4, 1))
    found = optimizers(network, settings(muon_lr=0.02))
    assert [p.shape for g in found["muon"].param_groups for p in g["params"]] == [(4, 2, 3, 3)]
    assert len(found["adamw"].param_groups[0]["params"]) == 5
    assert list(optimizers(network, settings())) == ["adamw"]
    decayed = optimizers(network, settings(muon_lr=0.02, weight_decay=0.3))
    assert [o.param_groups[0]["weight_decay"] for o in decayed.values()] == [0.3, 0.3]
    with pytest.raises(InputError, match=r"muon_lr 0\.02.* kernels of convolutions.*; set it to 0"):
        optimizers(nn.Linear(2, 2), settings(muon_lr=0.02))


def convolution(bad_step: int = 0):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(8, 2, 5, 5)
    y, step = nn.Conv2d(2, 3, 3)(x).detach(), 0

    def loss(index: torch.Tensor) -> torch.Tensor:
        nonlocal step
        step += 1
        return (layer(x) - y).square().mean() * (math.nan if step == bad_step else 1)

    return layer, loss


def kept_by_muon(training: Training) -> list[torch.Tensor]:
    """The kernels, and their momenta once there are any."""
    momenta = [state["momentum_buffer"] for state in training.optimizers["muon"].state.values()]
    return [x.detach().clone() for x in (training.network.weight, *momenta)]


def test_muon_learns_and_skips_a_bad_step():
    layer, loss = convolution(bad_step=7)
    run = settings(muon_lr=0.05, steps=200)
    training, first = Training(layer, loss, run, Batches(8, 8, torch.Generator())), loss(torch.arange(8)).item()
    for step in range(1, run.steps + 1):
        before = kept_by_muon(training)
        training.advance()
        moved = [not torch.equal(a, b) for a, b in zip(before, kept_by_muon(training), strict=False)]
        assert any(moved) == (step != 6)  # the loss was asked for once before, so that its seventh value is bad
    assert loss(torch.arange(8)).item() < 1e-2 * first


def test_settings_left_out_can_be_set_and_are_recorded():
    """An artifact states every setting, whether params.yaml does or not."""
    section = {"optimisation": dict(SETTINGS)}
    assert "muon_lr" not in SETTINGS
    assert Optimisation.parse(section["optimisation"], "optimisation").resolved() == settings().resolved()
    assert settings().resolved() | SETTINGS == settings().resolved()
    assert {key: settings().resolved()[key] for key in ("muon_lr", "compile")} == {"muon_lr": 0.0, "compile": False}
    changed = with_settings(section, ["optimisation.muon_lr=0.02"])["optimisation"]
    assert Optimisation.parse(changed, "optimisation").resolved() == settings().resolved() | {"muon_lr": 0.02}
    unknown = with_settings(section, ["optimisation.muon_rate=0.02"])["optimisation"]
    with pytest.raises(InputError, match=r"optimisation\.muon_rate: unknown parameter"):
        Optimisation.parse(unknown, "optimisation")
