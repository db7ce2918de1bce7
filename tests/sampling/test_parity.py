"""The same denoiser gives the same trajectory as diffusers' schedulers, on the schedules that both have."""

import warnings

import pytest
import torch
from gaussian import exact

from ldm.diffusion import schedules
from ldm.sampling import samplers, spacings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

STEPS = 20
BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
COMMON = {"num_train_timesteps": 1000, "timestep_spacing": "trailing", "prediction_type": "epsilon"}
MULTISTEP = {"solver_order": 2, "final_sigmas_type": "zero"}
PAIRS = [
    # (their scheduler, its options, our sampler, its options)
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_small"}, "ddpm", {}),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}, "ddim", {}),
    ("EulerDiscreteScheduler", {}, "euler", {}),
    ("HeunDiscreteScheduler", {}, "heun", {}),
    ("DPMSolverMultistepScheduler", MULTISTEP | {"algorithm_type": "dpmsolver++"}, "dpmpp_2m", {}),
    ("DPMSolverMultistepScheduler", MULTISTEP | {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m", {"eta": 1.0}),
]


def eps_of(x_t: torch.Tensor, bar: torch.Tensor) -> torch.Tensor:
    """The exact noise prediction at ᾱ, in x-space."""
    sigma = ((1 - bar) / bar).sqrt()
    x = x_t / bar.sqrt()
    return (x - exact(x, sigma)) / sigma


def theirs(
    name: str, options: dict, path: str, start: torch.Tensor, draws: torch.Tensor, monkeypatch
) -> list[torch.Tensor]:
    """Their states in σ-space, x / √ᾱ, after every step."""
    scheduler = getattr(diffusers, name)(**COMMON, **BETAS[path], **options)
    scheduler.set_timesteps(STEPS)
    left = iter(draws)
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: next(left).expand(shape), raising=False)
    bars = scheduler.alphas_cumprod.double()
    in_sigma_space = name.startswith(("Euler", "Heun"))  # their samples are x / √ᾱ
    first = bars[scheduler.timesteps[0].long()]
    x, states = (start if in_sigma_space else start * first.sqrt()), []
    times = scheduler.timesteps
    for i, t in enumerate(times):
        bar = bars[t.long()]
        scaled = scheduler.scale_model_input(x, t)
        prediction = eps_of(scaled.double(), bar)
        x = scheduler.step(prediction, t, x).prev_sample
        after = times[i + 1].long() if i + 1 < len(times) else None
        states.append(x if in_sigma_space or after is None else x / bars[after].sqrt())
    return states


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", BETAS)
@pytest.mark.parametrize(("name", "options", "word", "ours"), PAIRS, ids=[f"{p[0]}-{i}" for i, p in enumerate(PAIRS)])
def test_same_trajectory(name, options, path, word, ours, monkeypatch):
    if name.startswith("Heun") and path == "cosine":
        pytest.skip("from σ̄ = 20,000 Heun's second slope multiplies the rounding of their float32 tables by 800")
    # of the state's scale; float32 keeps 4 digits of the cosine's ᾱ_T = 2.4e-9
    tolerance = {"linear": 5e-6, "cosine": 1e-3}[path]
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(STEPS, 4, 4, generator=generator, dtype=torch.float64)
    sigmas = spacings.build("trailing")(schedules.build(path), STEPS)
    start = (1 + sigmas[0] ** 2).sqrt() * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    mine = list(samplers.build(word, ours)(exact, start, sigmas, iter(draws).__next__))
    other = theirs(name, options, path, start, draws, monkeypatch)
    if name.startswith("Heun"):
        other = other[1::2][: STEPS - 1] + other[-1:]  # they yield the Euler half of a step too
    assert len(mine) == len(other) == STEPS
    for a, b, sigma in zip(mine, other, sigmas[1:], strict=True):
        scale = (1 + sigma**2).sqrt()  # of the state
        error = ((a - b.double()) / scale).abs().max().item()
        assert error < tolerance
