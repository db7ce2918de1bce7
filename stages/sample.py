"""Draw standardised latents from the diffusion model, and their classes where it was given labels.

Every sample has its own random stream, from (seed, index): neither the batch size nor asking for one sample alone
(--set first=17 --set n=1) changes it beyond rounding. Several processes (--processes 2) draw whole batches each.
"""

from functools import partial
from typing import Annotated, Self

from pydantic import Field, model_validator

from ldm import Count, NonNegative, Options, Positive, Section, Seed, choice, training
from ldm.config import Name
from ldm.diffusion import check_range
from ldm.lazy import torch
from ldm.precision import Precision
from ldm.sampling import Guided, sample_batches, samplers, spacings, split_range, wrong_start
from stages.runner import Checkpoints, Run, bar, leave, stage, warn


class Guidance(Section):
    """Autoguidance by a network of earlier training.

    weight: 1 is no guidance; above, samples are led away from the guide's mistakes
    sigma_min: smallest σ̄ at which samples are guided
    sigma_max: largest σ̄ at which samples are guided
    """

    weight: Annotated[float, Field(ge=1)] = 1.0
    sigma_min: NonNegative = 0.0
    sigma_max: Positive = 1000.0

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> Self:
        check_range(self.sigma_min, self.sigma_max)
        return self


class HowToSample(Section):
    """How many samples, the sampler and its levels.

    seed: seed of the samples' random streams
    n: number of samples
    batch_size: samples drawn at once
    precision: arithmetic of the network, as in a training; auto is bf16 where the device multiplies in it, else fp32
    sampler: the sampler
    spacing: where the noise levels of the steps lie
    """

    seed: Seed
    n: Count
    batch_size: Count
    precision: Precision = "fp32"
    sampler: str = choice(samplers)
    samplers: Options
    spacing: str = choice(spacings)
    spacings: Options
    guidance: Guidance = Guidance()


class Config(HowToSample):
    """How many samples, of which class, and by how many steps.

    steps: steps of the sampler
    first: index of the first sample
    label: class of all samples, by its name, or its index; null gives each class its share of the training images
    redraw: look at each sample, and draw those once more that the denoiser itself takes for another class than the one
      asked for; a look takes three evaluations for each class
    shown: samples of the first batch whose states are kept for the animation
    """

    steps: Count
    first: Seed = 0
    label: Name | None = None
    redraw: bool = False
    shown: Count = 10


def compute(run: Run[Config]) -> None:
    config, artifact, guide, distributed = run.config, run.load("denoiser"), run.load("guide"), training.distributed
    denoiser = Guided.from_artifacts(artifact, guide, **config.guidance.model_dump(), device=run.device)
    denoiser.class_of(config.label)
    sampler, sigmas = config.build("sampler"), config.build("spacing")(denoiser.schedule, config.steps)
    warn(run.name, denoiser.schedule.wrong_start() or wrong_start(sigmas))
    batches = distributed.local_items(split_range(config.first, config.n, config.batch_size))
    checkpoints = Checkpoints(run)
    empty = {"samples": torch.empty(0, *denoiser.shape), "labels": torch.empty(0, dtype=torch.uint8)}
    state = checkpoints.latest() or empty
    left = batches[-(-len(state["samples"]) // config.batch_size) :]
    shown = 0 if "trajectory" in state else config.shown
    draw = partial(sample_batches, denoiser, sampler, sigmas, left, seed=config.seed, precision=config.precision)
    with torch.inference_mode(), bar(config.n, "img", run.name, len(state["samples"])) as progress:
        for batch in draw(label=config.label, redraw=config.redraw, shown=shown):
            state["samples"] = torch.cat([state["samples"], batch.x.cpu()])
            if batch.labels is not None:
                state["labels"] = torch.cat([state["labels"], batch.labels.byte().cpu()])
            if batch.trajectory is not None:
                state["trajectory"] = batch.trajectory
            progress.update(len(batch.x))
            complete = len(state["samples"]) == sum(map(len, batches))
            if checkpoints.due() or checkpoints.signal or complete:
                checkpoints.save(len(state["samples"]), state)
            if checkpoints.signal:
                raise checkpoints.interrupted(checkpoints.signal)
    checkpoints.finished()
    names = ["samples", *(["labels"] if denoiser.class_sizes else [])]
    gathered = {name: distributed.gather(state[name]) for name in names}
    leave()
    tensors = {name: torch.cat(slices) for name, slices in gathered.items()} | {"trajectory": state["trajectory"]}
    run.save("samples", tensors, [artifact, guide])


main = stage("sample", Config, compute, __doc__, parallel=True)

if __name__ == "__main__":
    main()
