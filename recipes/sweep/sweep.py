"""One point of quality against effort: a sampler, a number of function evaluations, its FID / validation, its seconds.

Choices are made by it, so the test images stay out: the floor is the distance of n validation images to the training
images. A function evaluation is one pass of a sample through a network, the guide included. The seconds are those at
the pace of the fastest batch, decoding included, since other work on the machine slows some batches down.
"""

import time
from bisect import bisect_right
from functools import partial
from typing import Any

import stages  # noqa: F401 - first, which looks whose ldm it is
from ldm import Count, InputError, Several, metrics, networks
from ldm.diffusion import Denoiser
from ldm.lazy import Tensor, torch
from ldm.sampling import Guided, Sampler, Spacing, Streams, last_state, sample_batches, split_range, states
from stages.runner import Run, bar, stage
from stages.sample import HowToSample


class Config(HowToSample):
    """The point, and how it is measured; the validation split must have n images.

    resamples: bootstrap resamples for the deviation of the ratio
    evaluations: function evaluations per sample, at most
    """

    resamples: Several = 20
    evaluations: Count


def compute(run: Run[Config]) -> None:
    config, inputs = run.config, run.load_all()
    features, guidance = inputs["features"], config.guidance.model_dump()
    denoiser = Guided.from_artifacts(inputs["denoiser"], inputs["guide"], **guidance, device=run.device)
    if len(features["validation"]) < config.n:
        count = len(features["validation"])
        raise InputError(f"sweep.n {config.n} is more than the {count} validation images; lower it")
    pairs = [(features[split], inputs["images"][f"{split}_labels"]) for split in ("train", "validation")]
    train, validation = (metrics.frechet.Labelled(x.numpy(), labels.numpy()) for x, labels in pairs)
    reference = metrics.frechet.Reference(train, validation, "validation images")
    decoder = networks.autoencoder.Decoder.from_artifacts(inputs["latents"], inputs.get("vae"), run.device)
    sampler, spacing = config.build("sampler"), config.build("spacing")
    most = min(config.evaluations, denoiser.schedule.length or config.evaluations)
    passes = partial(count_passes, denoiser, sampler, spacing)
    steps = bisect_right(range(1, most + 1), config.evaluations, key=passes)
    if not steps:
        raise InputError(f"evaluations {config.evaluations} are not enough for one step of {config.sampler}")
    sigmas, batches = spacing(denoiser.schedule, steps), split_range(0, config.n, config.batch_size)
    images: list[Tensor] = []
    paces: list[float] = []  # seconds per image
    with torch.inference_mode(), bar(config.n, "img", run.name) as progress:
        begin = time.perf_counter()
        for batch in sample_batches(denoiser, sampler, sigmas, batches, seed=config.seed, precision=config.precision):
            images.append(decoder(batch.x))
            paces.append((time.perf_counter() - begin) / len(batch.x))
            progress.update(len(batch.x))
            begin = time.perf_counter()
    network = networks.classifier.Classifier.from_artifact(inputs["classifier"], run.device)
    drawn = networks.classifier.in_batches(network.features, torch.cat(images).to(run.device)).cpu().numpy()
    ratio = reference.ratio(drawn, config.resamples)
    values: dict[str, Any] = {"data": inputs["images"].config["data"], "n": config.n, "sampler": config.sampler}
    values |= {"steps": steps, "evaluations": passes(steps), "fid_val": ratio.value, "fid_val_std": ratio.std}
    run.write_json("point.json", values | {"seconds_per_10k": 10_000 * min(paces)})


def count_passes(guided: Guided, sampler: Sampler, spacing: Spacing, steps: int) -> int:
    """How often a sample passes through a network in so many steps: counted by a run on a network that does nothing."""
    calls: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return torch.zeros_like(x)

    idle: Any = network
    main, guide = (Denoiser(idle, part.schedule, part.prediction) for part in (guided.main, guided.guide))
    low, high = guided.interval
    counted = Guided(main, guide, weight=guided.weight, sigma_min=low, sigma_max=high)
    last_state(states(counted, sampler, spacing(guided.schedule, steps), Streams(0, [0], (1, 1, 1))))
    return len(calls)


main = stage("sweep", Config, compute, __doc__, recipe="recipes/sweep")

if __name__ == "__main__":
    main()
