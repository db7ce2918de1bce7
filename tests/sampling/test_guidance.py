"""Autoguidance within its interval of noise levels."""

import torch
from gaussian import exact_denoiser

from ldm.diffusion import Denoiser, schedules
from ldm.sampling import Guided


def test_guidance_moves_away_from_the_guide():
    schedule = schedules.build("karras")
    main = exact_denoiser(schedule)
    guide = Denoiser(lambda x, t: torch.zeros_like(x), schedule, main.prediction)
    x = torch.randn(5, 1, dtype=torch.float64)
    low, high = torch.tensor(0.5, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    guided = Guided(main, guide, weight=3.0, sigma_min=0.2, sigma_max=1.0)
    torch.testing.assert_close(guided(x, low), 3 * main(x, low), rtol=1e-5, atol=1e-6)
    for outside in (high, 0.2 * low):
        torch.testing.assert_close(guided(x, outside), main(x, outside))
    unguided = Guided(main, guide, weight=1.0, sigma_min=0.2, sigma_max=1.0)
    torch.testing.assert_close(unguided(x, low), main(x, low))


def test_guidance_leads_from_the_guide_through_the_main_network():
    """D_guide + w (D_main − D_guide) where neither is 0."""
    schedule = schedules.build("karras")
    main = exact_denoiser(schedule)
    guide = Denoiser(lambda x, t: torch.full_like(x, 0.25), schedule, main.prediction)
    x, sigma = torch.randn(5, 1, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    guided = Guided(main, guide, weight=3.0, sigma_min=0.5, sigma_max=0.5)  # both ends are in the interval
    torch.testing.assert_close(guided(x, sigma), 3 * main(x, sigma) - 2 * 0.25, rtol=1e-5, atol=1e-6)
