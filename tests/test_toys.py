"""The toys: their distributions and distances, the network of experts, and bounds that a broken sampler misses."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_in

from ldm import artifacts, choices
from ldm.denoiser import Denoiser
from ldm.sampling import Streams
from ldm.toy import GaussianMixture, energy_distance, sliced_wasserstein
from stages.cli import read_yaml
from stages.toy import judge

FOLDER = ROOT / "recipes/toys"
TOYS = {"gaussian_1d": {"mean": 1.0, "std": 0.01}, "four_gaussians": {"std": 0.05}, "parabola": {}, "moons": {"noise": 0.05}}
RNG = np.random.default_rng(0)

# What samples of a working pipeline keep to, in units of the truth's deviation where it is a distance.
BOUNDS = {
    "gaussian_1d": {"sliced_wasserstein": 0.1, "energy_distance": 0.01, "mode_offset": 0.1, "mode_std_ratio": (0.85, 1.15)},
    "four_gaussians": {
        "sliced_wasserstein": 0.1,
        "energy_distance": 0.01,
        "mode_std_ratio": (0.7, 2.0),
        "smallest_share": (0.85, 1.0),
        "largest_share": (1.0, 1.15),
    },
    "parabola": {"sliced_wasserstein": 0.15, "energy_distance": 0.02, "curve_distance_median": 0.03, "curve_distance_p95": 0.1},
    "moons": {"sliced_wasserstein": 0.1, "energy_distance": 0.01},
}


def build(name: str):
    return choices.build("toys", name, TOYS[name])


def missed(toy: str, row: dict[str, float]) -> list[str]:
    """The bounds that a row of metrics misses."""
    wrong = []
    for key, bound in BOUNDS[toy].items():
        low, high = bound if isinstance(bound, tuple) else (-math.inf, bound)
        if not low <= row[key] <= high:
            wrong.append(f"{key} = {row[key]:.4g}")
    return wrong


def test_every_toy_is_tested():
    assert choices.known("toys") == sorted(TOYS)


@pytest.mark.parametrize("name", TOYS)
def test_draws_are_seeded_and_keep_the_bounds(name):
    toy = build(name)
    a, b, c = (toy.draw(4000, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert missed(name, judge(toy, a, c, toy.draw(4000, RNG), RNG)) == []


def test_the_density_of_a_mixture_integrates_to_one():
    toy = GaussianMixture(np.array([[-1.0], [1.0]]), 0.3)
    grid = np.linspace(-4, 4, 20_001)[:, None]
    assert np.exp(toy.log_density(grid)).sum() * (grid[1] - grid[0]).item() == pytest.approx(1, rel=1e-9)
    four = build("four_gaussians")
    x = np.array([[1.0, -1.0]])
    assert four.log_density(x).item() == pytest.approx(math.log(1 / (4 * 2 * math.pi * 0.05**2)))


def test_parabola_distance_is_that_to_the_curve():
    x = np.array([[0.0, -0.3], [1.0, 1.0], [0.5, 0.25]])
    row = build("parabola").judge(x)
    assert row["curve_distance_median"] == pytest.approx(0, abs=1e-9)
    assert row["curve_distance_p95"] == pytest.approx(0.9 * 0.3, rel=1e-3)


def test_mixture_statistics_notice_a_lost_mode():
    toy = build("four_gaussians")
    x = toy.draw(4000, RNG)
    kept = x[(x > 0).any(1)]  # the mode (−1, −1) is gone
    row = toy.judge(kept)
    assert row["smallest_share"] == 0
    assert row["largest_share"] == pytest.approx(4 / 3, rel=0.1)
    assert row["mode_std_ratio"] == pytest.approx(1, rel=0.05)


def test_sliced_wasserstein_of_a_shift():
    """A shift by v moves a projection by |cos| ‖v‖, whose mean in the plane is 2 ‖v‖ / π; on the line it is ‖v‖."""
    x = RNG.standard_normal((2000, 2))
    assert sliced_wasserstein(x, x + np.array([3.0, 4.0]), 4000, RNG) == pytest.approx(5 * 2 / math.pi, rel=0.03)
    assert sliced_wasserstein(x[:, :1], x[:, :1] - 2.0, 10, RNG) == pytest.approx(2)


def test_energy_distance_of_two_points_and_its_mean_of_none():
    """Far apart, 2 E‖X − Y‖ dominates; for equal distributions the unbiased estimate has mean 0."""
    x = np.zeros((5, 2))
    assert energy_distance(x, x + np.array([3.0, 4.0])) == pytest.approx(10)
    draws = [energy_distance(RNG.standard_normal((100, 2)), RNG.standard_normal((100, 2))) for _ in range(200)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / math.sqrt(200)
    assert min(draws) < 0 < max(draws)


def test_each_level_has_its_own_network():
    torch.manual_seed(0)
    options = {"width": 8, "layers": 2, "embedding": 4, "experts": 5}
    network = choices.build("networks", "mlp", options, (2, 1, 1))
    x, t = torch.randn(5, 2, 1, 1), torch.arange(1, 6) / 5
    out = network(x, t)
    assert out.shape == x.shape
    out[2].sum().backward()
    for layer in network.layers:
        used = layer.weight.grad.flatten(1).abs().sum(1) > 0
        assert used.tolist() == [False, False, True, False, False]
    one = choices.build("networks", "mlp", options | {"experts": 1}, (2, 1, 1))
    for layer, experts in zip(one.layers, network.layers, strict=True):
        layer.weight.data, layer.bias.data = experts.weight.data[2:3], experts.bias.data[2:3]
    torch.testing.assert_close(one(x, t)[2], out[2])


@pytest.mark.parametrize("name", read_yaml(FOLDER / "dvc.yaml")["stages"]["toy"]["matrix"]["toy"])
def test_committed_samples_keep_the_bounds(name):
    toy = read_yaml(FOLDER / "params.yaml")[name]["points"]["toy"]
    row = json.loads((FOLDER / f"artifacts/{name}/metrics.json").read_text())
    assert missed(toy, row) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four Gaussians as DDPM, trained by the toy stage at half its length."""
    out = tmp_path_factory.mktemp("toy")
    steps = ["--set", "train_diffusion.optimisation.steps=1500", "--set", "sample.n=2000", "--set", "sample.shown=500"]
    done = run_in(FOLDER, "python", "-m", "stages.toy", "--section", "four_gaussians_ddpm", *steps, "--out", str(out), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_a_toy_from_end_to_end(trained):
    assert missed("four_gaussians", json.loads((trained / "metrics.json").read_text())) == []
    names = {path.name for path in trained.iterdir()}
    outs = read_yaml(FOLDER / "dvc.yaml")["stages"]["toy"]["outs"]
    assert names == {Path(next(iter(o)) if isinstance(o, dict) else o).name for o in outs}
    for picture in trained.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


def ancestral(x, denoised, s, n, noise):
    """The right DDPM step, and then the broken ones."""
    ratio = (n / s) ** 2
    return ratio * x + (1 - ratio) * denoised + (ratio * (s**2 - n**2)).sqrt() * noise


BROKEN = {
    "product for a sum": lambda x, d, s, n, z: (ancestral(x, d, s, n, 0 * z)) * (1 + ((n / s) ** 2 * (s**2 - n**2)).sqrt() * z),
    "no noise": lambda x, d, s, n, z: ancestral(x, d, s, n, 0 * z),
    "twice the noise": lambda x, d, s, n, z: ancestral(x, d, s, n, 2 * z),
    "more noise than the step removes": lambda x, d, s, n, z: ancestral(x, d, s, n, z) + (0.5 * s * z if n > 0 else 0 * z),
    "the score's sign": lambda x, d, s, n, z: ancestral(x, 2 * x - d, s, n, z),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, *BROKEN])
def test_a_broken_sampler_misses_the_bounds(trained, fault):
    denoiser = Denoiser.from_artifact(artifacts.load(trained / "denoiser.safetensors", "denoiser"))
    latents = artifacts.load(trained / "latents.safetensors", "latents")
    sigmas = choices.build("spacings", "trailing", {})(denoiser.schedule, 50)
    noise = Streams(0, range(2000), (2, 1, 1))
    step = BROKEN.get(fault, ancestral)
    x = (1 + sigmas[0] ** 2).sqrt() * noise()
    with torch.no_grad():
        for s, n in pairwise(sigmas):
            x = step(x, denoiser(x, s), s, n, noise())
    points = x.flatten(1).numpy() * latents["channel_std"].numpy() + latents["channel_mean"].numpy()
    toy = build("four_gaussians")
    row = judge(toy, np.nan_to_num(points, posinf=1e6, neginf=-1e6), toy.draw(2000, RNG), toy.draw(2000, RNG), RNG)
    assert bool(missed("four_gaussians", row)) == (fault is not None), row
