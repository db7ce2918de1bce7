"""What the network predicts: every pair (a, b) against the papers' formulas, in float64."""

import pytest
import torch

from ldm.diffusion import invertible_without_signal, predictions, schedules
from ldm.diffusion.prediction import training_target, x0_error_scale, x0_from

OPTIONS = {"edm": {"sigma_data": 0.5}}


@pytest.mark.parametrize("name", sorted(schedules.functions))
@pytest.mark.parametrize("word", sorted(predictions.functions))
def test_predictions_round_trip(name, word):
    schedule, prediction = schedules.build(name), predictions.build(word, OPTIONS.get(word))
    t = schedule.snap(torch.linspace(0.005, 0.995, 200, dtype=torch.float64)).unique()[:, None]
    alpha_t, sigma_t = schedule.alpha_t(t), schedule.sigma_t(t)
    x0, eps = torch.randn(2, len(t), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t = alpha_t * x0 + sigma_t * eps
    output = training_target(prediction, x0, eps, alpha_t, sigma_t)
    torch.testing.assert_close(x0_from(prediction, output, x_t, alpha_t, sigma_t), x0, rtol=1e-9, atol=1e-9)
    a, b = prediction(alpha_t, sigma_t)  # F and x_t together tell the noise too
    noise = (alpha_t * output - a * x_t) / (b * alpha_t - a * sigma_t)
    torch.testing.assert_close(noise, eps, rtol=1e-9, atol=1e-9)
    # ‖ΔF‖² = c² ‖Δx0‖² with eps tied to x0 by x_t
    moved = x0 + 0.1
    moved_output = training_target(prediction, moved, (x_t - alpha_t * moved) / sigma_t, alpha_t, sigma_t)
    expected = x0_error_scale(prediction, alpha_t, sigma_t) * 0.01 * torch.ones_like(output)
    torch.testing.assert_close((moved_output - output) ** 2, expected, rtol=1e-5, atol=1e-12)


def test_predictions_are_the_papers():
    x0, eps, alpha_t, sigma_t = torch.randn(4, 7, dtype=torch.float64)
    expected = {"eps": eps, "x0": x0, "v": alpha_t * eps - sigma_t * x0, "flow": eps - x0}
    for word, value in expected.items():
        torch.testing.assert_close(training_target(predictions.build(word), x0, eps, alpha_t, sigma_t), value)
    # the score of N(alpha_t x0, sigma_t²) at x_t, by differentiation
    x_t = (alpha_t * x0 + sigma_t * eps).requires_grad_()
    (score,) = torch.autograd.grad((-((x_t - alpha_t * x0) ** 2) / (2 * sigma_t**2)).sum(), x_t)
    torch.testing.assert_close(training_target(predictions.build("score"), x0, eps, alpha_t, sigma_t), score)


def test_edm_preconditioning_is_the_papers():
    """Karras et al. 2022, Table 1: D = c_skip x + c_out F, where F has unit variance for data of deviation σ_data."""
    prediction, data = predictions.build("edm", {"sigma_data": 0.5}), 0.5
    sigma = torch.logspace(-3, 2, 30, dtype=torch.float64)[:, None]
    output, x = torch.randn(2, 30, 4, dtype=torch.float64)
    c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2).sqrt()
    denoised = x0_from(prediction, output, x, torch.ones_like(sigma), sigma)
    torch.testing.assert_close(denoised, c_skip * x + c_out * output)
    a, b = prediction(torch.ones_like(sigma), sigma)
    torch.testing.assert_close(a**2 * data**2 + b**2, torch.ones_like(sigma))


def test_edm_on_a_variance_preserving_schedule_is_minus_v():
    x0, eps = torch.randn(2, 7, dtype=torch.float64)
    sigma_t = torch.rand(7, dtype=torch.float64)
    alpha_t = (1 - sigma_t**2).sqrt()
    v, edm = (training_target(predictions.build(word), x0, eps, alpha_t, sigma_t) for word in ("v", "edm"))
    torch.testing.assert_close(edm, -v)


def test_which_predictions_tell_x0_where_there_is_no_signal():
    able = {word for word in predictions.functions if invertible_without_signal(predictions.build(word))}
    assert able == {"x0", "v", "flow", "edm"}
