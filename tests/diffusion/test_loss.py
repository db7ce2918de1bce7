"""Penalties, weightings and draws of t against their formulas, and the objective over slices of a batch."""

import pytest
import torch

from ldm.diffusion import (
    Denoiser,
    DiffusionLoss,
    Objective,
    penalties,
    predictions,
    schedules,
    timestep_samplings,
    weightings,
)
from ldm.diffusion.prediction import x0_error_scale
from ldm.networks import Posterior, Standardiser

HALF = {"edm": {"sigma_data": 0.5}}  # the deviation of the data


@pytest.mark.parametrize("word", ["flow", "v", "x0", "edm"])
@pytest.mark.parametrize("weighting", sorted(weightings.functions))
def test_weights_are_on_the_error_of_x0(word, weighting):
    schedule, prediction = schedules.build("rectified_flow"), predictions.build(word, HALF.get(word))
    denoiser = Denoiser(lambda x, t: torch.full_like(x, 0.3), schedule, prediction)
    loss = DiffusionLoss(penalties.build("l2"), weightings.build(weighting, HALF.get(weighting)))
    x0, eps = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.05, 0.95, 64)
    alpha_t, sigma_t = schedule.alpha_t(t)[:, None], schedule.sigma_t(t)[:, None]
    x_t = (alpha_t * x0 + sigma_t * eps).double()
    error = (denoiser.x0(x_t, schedule.at(t)) - x0).square().mean(1)
    snr = ((alpha_t / sigma_t) ** 2)[:, 0]
    sigma = snr**-0.5
    weight = {
        "none": x0_error_scale(prediction, alpha_t, sigma_t)[:, 0],
        "snr": snr,
        "min_snr": snr.clamp(max=5),
        "edm": (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2,
    }[weighting]
    torch.testing.assert_close(loss(denoiser, x0, eps, t).double(), weight * error, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(penalties.functions))
def test_the_unweighted_loss_is_the_mean_penalty_of_the_predictions_error(name):
    denoiser = Denoiser(lambda x, t: torch.zeros_like(x), schedules.build("linear"), predictions.build("eps"))
    penalty = penalties.build(name, {"delta": 0.5} if name == "huber" else {})
    x0, eps = torch.randn(2, 8, 3)
    loss = DiffusionLoss(penalty, weightings.build("none"))(denoiser, x0, eps, torch.rand(8))
    size = eps.abs()
    expected = {"l1": size, "l2": size**2, "huber": torch.where(size < 0.5, size**2 / 2, 0.5 * (size - 0.25))}[name]
    torch.testing.assert_close(loss, expected.mean(1))


@pytest.mark.parametrize("name", sorted(timestep_samplings.functions))
def test_training_times(name):
    schedule = schedules.build("karras")
    draw = timestep_samplings.build(name, {"mean": -0.5, "std": 0.8} if name == "logit_normal" else {})
    t = draw(schedule, 100_000, torch.Generator().manual_seed(0)).double()
    assert t.min() > 0
    assert t.max() <= 1
    if name == "uniform":
        assert t.mean().item() == pytest.approx(0.5, abs=0.005)
        assert t.var().item() == pytest.approx(1 / 12, rel=0.02)
    elif name == "log_normal":
        log_sigma = schedule.sigma_t(t).log()
        assert log_sigma.mean().item() == pytest.approx(-1.2, abs=0.02)
        assert log_sigma.std().item() == pytest.approx(1.2, rel=0.01)
    else:
        assert name == "logit_normal"
        assert t.logit().mean().item() == pytest.approx(-0.5, abs=0.01)
        assert t.logit().std().item() == pytest.approx(0.8, rel=0.01)


def network(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Depends on everything that it is given, sample by sample."""
    shift = t if labels is None else t + labels
    return x.tanh() + shift[:, None, None, None]


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("name", sorted(timestep_samplings.functions))
def test_a_slice_of_a_batch_has_the_losses_of_the_whole(name, with_labels):
    """Processes that each take a slice train as one: the draws, and what is left of the generator, are the same."""
    torch.manual_seed(0)
    denoiser = Denoiser(network, schedules.build("rectified_flow"), predictions.build("flow"))
    batch = Posterior(*torch.randn(2, 12, 2, 3, 3))
    labels = torch.randint(4, (12,)) if with_labels else None
    standardiser = Standardiser(torch.tensor([0.3, -1.0]).double(), torch.tensor([0.5, 2.0]).double())
    loss = DiffusionLoss(penalties.build("l2"), weightings.build("min_snr"))
    objective = Objective(standardiser, loss, timestep_samplings.build(name))

    def losses(*local: slice) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(7)
        found = objective(denoiser, batch, labels, generator, *local)
        return found, generator.get_state()

    whole, state = losses()
    assert whole.shape == (12,)
    assert len(whole.unique()) == 12
    for local in (slice(0, 12), slice(0, 5), slice(5, 12), slice(3, 4)):
        losses_of_slice, state_after = losses(local)
        torch.testing.assert_close(losses_of_slice, whole[local], rtol=1e-6, atol=0)
        assert torch.equal(state_after, state)


def test_the_objective_is_the_loss_at_fresh_draws():
    """By its definition, from the same generator: the posterior's noise, that of the path, then the times."""
    torch.manual_seed(0)
    denoiser = Denoiser(network, schedules.build("rectified_flow"), predictions.build("flow"))
    batch, labels = Posterior(torch.randn(6, 2, 3, 3), torch.randn(6, 2, 3, 3)), torch.randint(4, (6,))
    mean, std = torch.tensor([0.3, -1.0]).double(), torch.tensor([0.5, 2.0]).double()
    loss = DiffusionLoss(penalties.build("l2"), weightings.build("none"))
    objective = Objective(Standardiser(mean, std), loss, timestep_samplings.build("uniform"))
    found = objective(denoiser, batch, labels, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    eps = torch.randn(2, 6, 2, 3, 3, generator=generator)
    t = 1 - torch.rand(6, generator=generator)
    z = batch.mean + (batch.log_variance / 2).exp() * eps[0]
    x0 = (z - mean[:, None, None].float()) / std[:, None, None].float()
    x_t = (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * eps[1]
    unit = ((1 - t) ** 2 + t**2).sqrt()[:, None, None, None]
    error = network(x_t / unit, t, labels) - (eps[1] - x0)
    torch.testing.assert_close(found, error.square().flatten(1).mean(1), rtol=1e-5, atol=1e-6)
    again = objective(denoiser, batch, labels, generator)
    assert not torch.isclose(again, found).any()
