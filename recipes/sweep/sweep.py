"""One point of quality against effort: a sampler and a number of function evaluations, its FID / floor and its seconds.

It serves choices, so the floor is the validation images' distance to the training images, at the same n. A function
evaluation is one pass of a network, the guide's too, per sample. The seconds, decoding included, are those at the pace
of the fastest batch, since machines are shared.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ldm import metrics, networks
from ldm.config import Count
from ldm.diffusion.denoiser import Denoiser
from ldm.errors import InputError
from ldm.lazy import Tensor, torch
from ldm.networks.latents import Standardiser
from ldm.sampling.guidance import Guided
from ldm.sampling.levels import Spacing
from ldm.sampling.reverse import Streams, last_state, sample_batches, states
from ldm.sampling.samplers import Sampler
from stages.runner.command import stage
from stages.runner.progress import bar
from stages.runner.run import Run
from stages.sample import HowToSample


class Config(HowToSample):
    """The point, and how it is measured; the validation split must have n images.

    resamples: bootstrap resamples for the spread of the distance
    evaluations: function evaluations per sample, at most
    """

    resamples: Annotated[int, Field(ge=2)] = 20
    evaluations: Count


def compute(run: Run[Config]) -> None:
    config, inputs = run.config, run.load_all()
    features = inputs["features"]
    guidance = config.guidance.model_dump()
    denoiser = Guided.from_artifacts(inputs["denoiser"], inputs["guide"], **guidance, device=run.device)
    if len(features["validation"]) < config.n:
        raise InputError(
            f"n {config.n} is more than the {len(features['validation'])} validation images that make the floor; "
            "lower sweep.n"
        )
    moments, distance = metrics.frechet.moments, metrics.frechet.frechet_distance
    train = moments(features["train"].numpy(), "training images")
    validation = metrics.quality.subset(features["validation"], config.n, config.seed)
    floor = distance(moments(validation.numpy(), "validation images"), train)
    vae = networks.autoencoder.from_artifact(inputs.get("vae"), run.device)
    standardiser = Standardiser.from_artifact(inputs["latents"], run.device)
    sampler, spacing = config.build("sampler"), config.build("spacing")
    most = min(config.evaluations, denoiser.schedule.length or config.evaluations)
    steps = bisect_right(
        range(1, most + 1), config.evaluations, key=lambda n: count_passes(denoiser, sampler, spacing, n)
    )
    if not steps:
        raise InputError(f"evaluations {config.evaluations} are not enough for one step of {config.sampler}")
    batches = sample_batches(
        denoiser,
        sampler,
        spacing(denoiser.schedule, steps),
        inputs["denoiser"].config["shape"],
        [part.tolist() for part in torch.arange(config.n).split(config.batch_size)],
        seed=config.seed,
        device=run.device,
    )
    images: list[Tensor] = []
    paces: list[float] = []  # seconds per image
    with torch.inference_mode(), bar(config.n, "img", run.name) as progress:
        begin = time.perf_counter()
        for batch in batches:
            z = standardiser.unstandardise(batch.x)
            images.append(networks.autoencoder.decode_images(vae, z).cpu())
            paces.append((time.perf_counter() - begin) / len(z))
            progress.update(len(z))
            begin = time.perf_counter()
    network = networks.classifier.Classifier.from_artifact(inputs["classifier"], run.device)
    drawn = networks.classifier.in_batches(network.features, torch.cat(images).to(run.device)).cpu().numpy()
    spread = metrics.frechet.bootstrap_spread(drawn, train, config.resamples, np.random.default_rng(config.seed))
    values: dict[str, Any] = {
        "data": inputs["images"].config["data"],
        "n": config.n,
        "sampler": config.sampler,
        "steps": steps,
        "evaluations": count_passes(denoiser, sampler, spacing, steps),
        "fid_over_floor": distance(moments(drawn, "samples"), train) / floor,
        "spread": spread / floor,
        "seconds_per_10k": 10_000 * min(paces),
    }
    run.write("point.json", json.dumps(values, indent=1).encode())


def count_passes(guided: Guided, sampler: Sampler, spacing: Spacing, steps: int) -> int:
    """How often a sample passes through a network in so many steps: counted by a run on a network that does nothing."""
    calls: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return torch.zeros_like(x)

    idle: Any = network
    main, guide = (Denoiser(idle, part.schedule, part.prediction) for part in (guided.main, guided.guide))
    counted = Guided(main, guide, weight=guided.weight, sigma_min=guided.interval[0], sigma_max=guided.interval[1])
    last_state(states(counted, sampler, spacing(guided.schedule, steps), Streams(0, [0], (1, 1, 1))))
    return len(calls)


main = stage("sweep", Config, compute, __doc__, recipe="recipes/sweep")

if __name__ == "__main__":
    main()
