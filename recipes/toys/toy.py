"""A toy distribution from end to end: draw points, train a denoiser, sample, judge the samples, and draw figures.

Training and sampling are the stages train_diffusion and sample themselves, run on points (d, 1, 1)
in the place of latents.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ldm import choices
from ldm.config import ChoiceSection, OptionTable, Section, choice
from stages import sample, train_diffusion
from stages.cli import Job, stage

if TYPE_CHECKING:
    from numpy.random import Generator

    from ldm.toy import Points as Points2D
    from ldm.toy import Toy


class Points(ChoiceSection):
    """The distribution."""

    seed: int = Field(ge=0, lt=2**63, description="seed of the points")
    n: int = Field(ge=100, description="points of the training set; as many again are the truth that samples are judged by")
    toy: str = choice("toys", "the distribution")
    toys: OptionTable


class Config(Section):
    """A toy: its points, its training and its sampling."""

    points: Points
    train_diffusion: train_diffusion.Config
    sample: sample.Config


def run(job: Job[Config]) -> None:
    import numpy as np

    from ldm.latents import Standardiser

    points, rng = job.config.points, np.random.default_rng(job.config.points.seed)
    toy: Toy = choices.build(*points.chosen("toy"))
    drawn = {split: toy.draw(points.n, rng) for split in ("train", "validation", "test")}

    def part(config: Any, *kinds: str) -> Job[Any]:
        name = f"{job.name}.{type(config).__module__.rpartition('.')[2]}"  # the states of the parts lie apart
        return replace(job, name=name, config=config, inputs={kind: job.outputs[f"{kind}.safetensors"] for kind in kinds})

    save_points(part(points), drawn)
    train_diffusion.run(part(job.config.train_diffusion, "latents"))
    sample.run(part(job.config.sample, "denoiser", "guide"))
    made = part(job.config.sample, "latents", "denoiser", "samples")
    standardiser = Standardiser.from_artifact(made.load("latents"))
    samples = standardiser.restore(made.load("samples")["samples"].double()).flatten(1).numpy()
    job.write("metrics.json", json.dumps(judge(toy, samples, drawn["test"], drawn["validation"], rng), indent=1).encode())
    draw_figures(made)


def save_points(job: Job[Points], drawn: dict[str, Points2D]) -> None:
    """Points as latents whose posterior has no spread."""
    import torch

    from ldm.latents import Standardiser

    tensors: dict[str, torch.Tensor] = {}
    for split, x in drawn.items():
        mean = torch.from_numpy(x).float()[:, :, None, None]  # (n, d, 1, 1)
        tensors |= {f"{split}_mean": mean, f"{split}_log_variance": torch.full_like(mean, -80)}
    moments = Standardiser.fit(tensors["train_mean"], tensors["train_log_variance"])
    job.save("latents", tensors | {"channel_mean": moments.mean, "channel_std": moments.std})


def judge(toy: Toy, x: Points2D, truth: Points2D, more_truth: Points2D, rng: Generator) -> dict[str, Any]:
    """Distances of samples to the truth, in units of the truth's deviation; `floor_…` are those of the truth to itself."""
    from ldm.toy import energy_distance, sliced_wasserstein

    unit, n = truth.std(), min(len(x), len(truth), 2000)
    row: dict[str, Any] = {"n": len(x)}
    for prefix, points in (("", x), ("floor_", more_truth[: len(x)])):
        row[f"{prefix}sliced_wasserstein"] = sliced_wasserstein(points / unit, truth / unit, 100, rng)
        row[f"{prefix}energy_distance"] = energy_distance(points[:n] / unit, truth[:n] / unit)
    return row | toy.judge(x)


def draw_figures(job: Job[sample.Config]) -> None:
    import torch

    from ldm.denoiser import Denoiser
    from ldm.latents import Standardiser, draw
    from stages import toy_figures as figures

    config, latents, samples = job.config, job.load("latents"), job.load("samples")
    denoiser = Denoiser.from_artifact(job.load("denoiser"))
    schedule = denoiser.schedule
    sigmas = choices.build(*config.chosen("spacing"))(schedule, config.steps)  # (N + 1,)
    reverse = samples["trajectory"].flatten(2).transpose(0, 1).double()  # (N + 1, n, d)
    data = Standardiser.from_artifact(latents).standardise(draw(latents["test_mean"], latents["test_log_variance"], torch.zeros(1))).flatten(1).double()
    data = data[: reverse.shape[1]]
    eps = torch.randn(data.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.cat([schedule.t(-sigmas[:-1].log()), torch.zeros(1)])
    alpha, sigma = (torch.cat([level(t[:-1]), torch.tensor([end])])[:, None, None] for level, end in ((schedule.alpha, 1.0), (schedule.sigma, 0.0)))
    unit = (alpha**2 + sigma**2).sqrt()
    forward = (alpha * data + sigma * eps) / unit
    paths = {"forward": forward.numpy(), "reverse": (reverse / unit).numpy()}
    for name, path in paths.items():
        job.write(f"{name}.png", figures.process(path, t.numpy(), f"{name} process"))
    job.write("densities.png", figures.densities(paths["forward"], paths["reverse"], t.numpy()))
    job.write("score.png", figures.score_field(denoiser, sigmas[:-1], data.shape[1]))
    job.write("animation.gif", figures.animation(paths["reverse"], t.numpy()))


main = stage("toy", Config, run, __doc__)

if __name__ == "__main__":
    main()
