"""A toy distribution from end to end: draw points, train a denoiser, sample, score the samples, and draw figures.

Training and sampling are the stages train_diffusion and sample themselves, run on points (d, 1, 1) in the place of
latents. metrics.json has:

\b
sliced_wasserstein         Wasserstein distance of samples to true points, in the mean over directions
energy_distance            energy distance of samples to true points: 0 on average for equal distributions
floor_sliced_wasserstein, floor_energy_distance  the same of other true points, in the place of samples
mode_offset                mean offset of the samples from their nearest modes, along its largest axis, in deviations
mode_std_ratio             deviation of the samples around their nearest modes, over the true one
smallest_share             share of the samples at the poorest mode, times the number of modes
largest_share              share of the samples at the richest mode, times the number of modes
nats                       mean −log p of true points under the model, seen through noise of its smallest level
floor_nats                 the same under the exact denoiser, whose ODE is solved on the same levels
entropy                    the same under the truth, without solving an ODE
curve_distance_median      distance of the samples to the curve: the median
curve_distance_p95         distance of the samples to the curve: the 95th percentile
"""

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

import stages  # noqa: F401 - first, which looks whose ldm it is
from ldm import Options, Section, Seed, choice
from ldm.config import MOST
from ldm.data.toys import GaussianMixture, Points, Toy, energy_distance, sliced_wasserstein, toys
from ldm.diffusion import Denoiser
from ldm.lazy import Tensor, torch
from ldm.networks import Posterior, Standardiser
from ldm.sampling.likelihood import log_likelihood
from recipes.toys import figures
from stages import sample, train_diffusion
from stages.runner import Run, stage

TRUTH = 2000  # most true points that the energy distance is computed from
SEEN = 1000  # and that the likelihood is taken of


class Distribution(Section):
    """The distribution, and how many points of it.

    seed: seed of the points
    n: points of the training set; as many again are the truth that samples are scored by
    toy: the distribution
    """

    seed: Seed
    n: Annotated[int, Field(ge=100, le=MOST)]
    toy: str = choice(toys)
    toys: Options


class Config(Section):
    """A toy: its points, its training and its sampling."""

    points: Distribution
    train_diffusion: train_diffusion.Config
    sample: sample.Config


def compute(run: Run[Config]) -> None:
    points, rng = run.config.points, np.random.default_rng(run.config.points.seed)
    toy: Toy = points.build("toy")
    drawn = {split: toy.draw(points.n, rng) for split in ("train", "validation", "test")}

    def part(name: str, *kinds: str) -> Run[Any]:
        inputs = {kind: run.outputs[f"{kind}.safetensors"] for kind in kinds}
        # the checkpoints of the parts lie apart
        return replace(run, name=f"{run.name}.{name}", config=getattr(run.config, name), inputs=inputs)

    save_points(part("points"), drawn)
    train_diffusion.compute(part("train_diffusion", "latents"))
    sample.compute(part("sample", "denoiser", "guide"))
    sampled = part("sample", "latents", "denoiser", "samples")
    latents, samples = sampled.load("latents"), sampled.load("samples")
    denoiser, standardiser = Denoiser.from_artifact(sampled.load("denoiser")), Standardiser.from_artifact(latents)
    sigmas = sampled.config.build("spacing")(denoiser.schedule, sampled.config.steps)
    x = standardiser.unstandardise(samples["samples"].double()).flatten(1).numpy()
    row = score(toy, x, drawn["test"], drawn["validation"], rng)
    run.write_json("metrics.json", row | likelihoods(toy, denoiser, standardiser, sigmas, drawn["test"][:SEEN]))
    draw_figures(sampled, denoiser, standardiser, sigmas)


def save_points(run: Run[Distribution], drawn: dict[str, Points]) -> None:
    """Points as latents whose posterior has no spread."""
    tensors: dict[str, Tensor] = {}
    for split, x in drawn.items():
        mean = torch.from_numpy(x).float()[:, :, None, None]  # (n, d, 1, 1)
        tensors |= {f"{split}_mean": mean, f"{split}_log_variance": torch.full_like(mean, -80)}
    moments = Standardiser.fit(Posterior(tensors["train_mean"], tensors["train_log_variance"]))
    run.save("latents", tensors | {"channel_mean": moments.mean, "channel_std": moments.std})


def score(toy: Toy, x: Points, truth: Points, more_truth: Points, rng: np.random.Generator) -> dict[str, Any]:
    """Distances of samples (n, d) to the truth, in units of its deviation, and the toy's own statistics.

    `floor_…` are the distances of `more_truth`, other true points, to the truth: what a perfect sampler would have.
    """
    unit, n = truth.std(), min(len(x), len(truth), TRUTH)
    row: dict[str, Any] = {"n": len(x)}
    for prefix, points in (("", x), ("floor_", more_truth[: len(x)])):
        row[f"{prefix}sliced_wasserstein"] = sliced_wasserstein(points / unit, truth / unit, 100, rng)
        row[f"{prefix}energy_distance"] = energy_distance(points[:n] / unit, truth[:n] / unit)
    return row | toy.score_samples(x)


def likelihoods(
    toy: Toy, denoiser: Denoiser, standardiser: Standardiser, sigmas: Tensor, truth: Points
) -> dict[str, float]:
    """Mean −log p of true points (n, d) under the model, the exact denoiser and the truth, where that has a formula.

    sigmas: (N + 1,). The points are seen through noise of the level sigmas[-2], where the model's ODE ends.
    """
    if not isinstance(toy, GaussianMixture):
        return {}
    log_density, scale = toy.log_density, standardiser.std
    x = standardiser.standardise(torch.from_numpy(truth)[:, :, None, None])
    x = x + sigmas[-2] * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)

    def log_p(x: Tensor, sigma: Tensor) -> Tensor:
        return log_density(standardiser.unstandardise(x).flatten(1), sigma * scale)

    def exact(x: Tensor, sigma: Tensor) -> Tensor:
        """By Tweedie's formula, from the gradient of the log-density."""
        return x + sigma**2 * torch.autograd.grad(log_p(x, sigma).sum(), x, create_graph=True)[0]

    unit = scale.log().sum()  # from the density of standardised points to that of points
    nats, floor = (unit - log_likelihood(function, x, sigmas).mean() for function in (denoiser, exact))
    return {"nats": nats.item(), "floor_nats": floor.item(), "entropy": -log_p(x, sigmas[-2]).mean().item()}


def draw_figures(run: Run[sample.Config], denoiser: Denoiser, standardiser: Standardiser, sigmas: Tensor) -> None:
    """All figures of a toy; sigmas: (N + 1,)."""
    latents, samples, schedule = run.load("latents"), run.load("samples"), denoiser.schedule
    states = samples["trajectory"].flatten(2).transpose(0, 1).double()  # (N + 1, n, d)
    points = Posterior(latents["test_mean"], latents["test_log_variance"]).draw(torch.zeros(1))
    data = standardiser.standardise(points).flatten(1).double()[: states.shape[1]]
    eps = torch.randn(data.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = [[*map(float, schedule.at_sigma(sigma))] for sigma in sigmas[:-1]] + [[0.0, 1.0, 0.0]]
    t, alpha_t, sigma_t = torch.tensor(levels, dtype=torch.float64).T  # (N + 1,) each
    alpha_t, sigma_t = alpha_t[:, None, None], sigma_t[:, None, None]
    unit = (alpha_t**2 + sigma_t**2).sqrt()
    times, forward, reverse = t.numpy(), ((alpha_t * data + sigma_t * eps) / unit).numpy(), (states / unit).numpy()
    run.write("forward.png", figures.process(forward, times, "forward process"))
    run.write("reverse.png", figures.process(reverse, times, "reverse process"))
    run.write("densities.png", figures.densities(forward, reverse, times))
    run.write("score.png", figures.fields(denoiser, sigmas[:-1], data.shape[1]))
    run.write("animation.gif", figures.animation(reverse, times))


main = stage("toy", Config, compute, __doc__, recipe="recipes/toys")

if __name__ == "__main__":
    main()
