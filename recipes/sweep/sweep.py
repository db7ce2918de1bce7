"""One point of quality against effort: a sampler and a number of function evaluations, its FID / floor and its seconds.

It serves choices, so the floor is the validation images' distance to the training images, at the same n.
A function evaluation is one pass of a network, the guide's too, per sample. The seconds, decoding
included, are those at the pace of the fastest batch, since machines are shared.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ldm import choices
from ldm.config import ChoiceSection, OptionTable, choice
from ldm.errors import InputError
from stages.cli import Job, stage
from stages.progress import track
from stages.sample import Guidance

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.denoiser import Guided


class Config(ChoiceSection):
    """The point, and how it is measured."""

    seed: int = Field(ge=0, lt=2**63, description="seed of the samples' random streams, and of the resamples")
    n: int = Field(ge=1, description="samples; the validation split must have as many images")
    batch_size: int = Field(ge=1, description="samples drawn at once")
    resamples: int = Field(ge=2, description="bootstrap resamples for the spread of the distance")
    evaluations: int = Field(ge=1, description="function evaluations a sample, at most")
    sampler: str = choice("samplers", "the sampler")
    samplers: OptionTable
    spacing: str = choice("spacings", "where the noise levels of the steps lie")
    spacings: OptionTable
    guidance: Guidance


def run(job: Job[Config]) -> None:
    import numpy as np
    import torch

    from ldm.autoencoder import decode_images, from_artifact
    from ldm.classifier import Classifier, in_batches
    from ldm.denoiser import Guided
    from ldm.frechet import bootstrap_spread, frechet_distance, moments
    from ldm.latents import Standardiser
    from ldm.quality import subset
    from ldm.sampling import Streams, last_state, states

    config, inputs = job.config, job.load_all()
    features, denoiser = inputs["features"], Guided.from_artifacts(inputs["denoiser"], inputs["guide"], **config.guidance.model_dump(), device=job.device)
    if len(features["validation"]) < config.n:
        raise InputError(f"n {config.n} is more than the {len(features['validation'])} validation images that make the floor; lower sweep.n")
    train, held_out = moments(features["train"].numpy(), "training images"), subset(features["validation"], config.n, config.seed)
    floor = frechet_distance(moments(held_out.numpy(), "validation images"), train)
    vae, standardiser = from_artifact(inputs.get("vae")).to(job.device), Standardiser.from_artifact(inputs["latents"], job.device)
    sampler, spacing = (choices.build(*config.chosen(word)) for word in ("sampler", "spacing"))
    most = min(config.evaluations, denoiser.schedule.steps or config.evaluations)
    steps = bisect_right(range(1, most + 1), config.evaluations, key=lambda n: passes(denoiser, sampler, spacing, n))
    if not steps:
        raise InputError(f"evaluations {config.evaluations} are not enough for one step of {config.sampler}")
    sigmas = spacing(denoiser.schedule, steps)
    images: list[Tensor] = []
    paces: list[float] = []  # seconds an image
    with torch.inference_mode():
        for part in track(torch.arange(config.n).split(config.batch_size), config.n, "img", job.name, len):
            begin = time.perf_counter()
            noise = Streams(config.seed, part.tolist(), inputs["denoiser"].config["shape"], job.device)
            x = last_state(states(denoiser.given_streams(noise, None), sampler, sigmas, noise)).float()
            images.append(decode_images(vae, standardiser.restore(x)).cpu())
            paces.append((time.perf_counter() - begin) / len(part))
    network = Classifier.from_artifact(inputs["classifier"]).to(job.device)
    of = in_batches(network.features, torch.cat(images).to(job.device)).cpu().numpy()
    values: dict[str, Any] = {
        "data": inputs["images"].config["data"],
        "n": config.n,
        "sampler": config.sampler,
        "steps": steps,
        "evaluations": passes(denoiser, sampler, spacing, steps),
        "fid_over_floor": frechet_distance(moments(of, "samples"), train) / floor,
        "spread": bootstrap_spread(of, train, config.resamples, np.random.default_rng(config.seed)) / floor,
        "seconds_per_10k": 10_000 * min(paces),  # at the pace of the fastest batch: others share the machine
    }
    job.write("point.json", json.dumps(values, indent=1).encode())


def passes(guided: Guided, sampler: Any, spacing: Any, steps: int) -> int:
    """How often a sample passes through a network in so many steps: counted by a run on a network that does nothing else."""
    import torch

    from ldm.denoiser import Denoiser, Guided
    from ldm.sampling import Streams, last_state, states

    calls: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return torch.zeros_like(x)

    idle: Any = network
    main, guide = (Denoiser(idle, of.schedule, of.target) for of in (guided.main, guided.guide))
    counted = Guided(main, guide, weight=guided.weight, sigma_min=guided.interval[0], sigma_max=guided.interval[1])
    last_state(states(counted, sampler, spacing(guided.schedule, steps), Streams(0, [0], (1, 1, 1))))
    return len(calls)


main = stage("sweep", Config, run, __doc__)

if __name__ == "__main__":
    main()
