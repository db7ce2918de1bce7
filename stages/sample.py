"""Draw standardised latents from the diffusion model, and their classes where it was given labels.

Every sample has its own random stream, from (seed, index): neither the batch size nor asking
for one sample alone (--set first=17 --set n=1) changes it beyond rounding. Several processes
(--processes 2) draw whole batches each.
"""

from __future__ import annotations

from math import prod

from pydantic import Field, model_validator

from ldm import choices
from ldm.config import ChoiceSection, OptionTable, Section, choice
from ldm.errors import InputError
from stages.cli import Job, stage, warn
from stages.launch import leave
from stages.progress import bar
from stages.scratch import KEPT, SCRATCH, check_space, open_scratch

ACTIVATIONS = 250  # memory that a batch takes in a network of this size, in sizes of the batch, about


class Guidance(Section):
    """Autoguidance by a network of earlier training."""

    weight: float = Field(ge=1, description="1: none; above: away from the guide's mistakes")
    sigma_min: float = Field(ge=0, description="smallest σ̄ at which samples are guided")
    sigma_max: float = Field(gt=0, description="largest σ̄ at which samples are guided")

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> Guidance:
        if self.sigma_min >= self.sigma_max:
            raise InputError(f"sigma_min {self.sigma_min:g} must be below sigma_max {self.sigma_max:g}")
        return self


class Config(ChoiceSection):
    """The sampler, its levels and the number of samples."""

    seed: int = Field(ge=0, lt=2**63, description="seed of the samples' random streams")
    first: int = Field(ge=0, lt=2**63, description="index of the first sample")
    n: int = Field(ge=1, description="number of samples")
    batch_size: int = Field(ge=1, description="samples drawn at once")
    steps: int = Field(ge=1, description="steps of the sampler")
    sampler: str = choice("samplers", "the sampler")
    samplers: OptionTable
    spacing: str = choice("spacings", "where the noise levels of the steps lie")
    spacings: OptionTable
    guidance: Guidance
    label: int | None = Field(default=None, ge=0, description="class of all samples; null: each drawn as often as in training")
    shown: int = Field(ge=1, description="samples whose states are kept for the animation")


def run(job: Job[Config]) -> None:
    import torch

    from ldm import parallel
    from ldm.denoiser import Guided
    from ldm.sampling import Streams, states, wrong_start

    config, artifact, guide = job.config, job.load("denoiser"), job.load("guide")
    denoiser = Guided.from_artifacts(artifact, guide, **config.guidance.model_dump(), device=job.device)
    denoiser.check_label(config.label)
    sampler = choices.build(*config.chosen("sampler"))
    sigmas = choices.build(*config.chosen("spacing"))(denoiser.schedule, config.steps)
    warn(job.name, denoiser.schedule.wrong_start() or wrong_start(sigmas))
    shape = artifact.config["shape"]
    check_room(job, 4 * prod(shape))
    indices = range(config.first, config.first + config.n)
    batches = [indices[i : i + config.batch_size] for i in range(0, config.n, config.batch_size)]
    mine = parallel.part(batches)
    scratch = open_scratch(job)
    done = scratch.latest() or {"samples": torch.empty(0, *shape), "labels": torch.empty(0, dtype=torch.uint8)}
    with torch.inference_mode(), bar(config.n, "img", job.name, len(done["samples"])) as progress:
        while len(done["samples"]) < sum(map(len, mine)):
            part = mine[len(done["samples"]) // config.batch_size]
            frames = []
            streams = Streams(config.seed, part, shape, job.device)
            given = denoiser.given_streams(streams, config.label)
            for x_t in states(given, sampler, sigmas, streams):
                if "trajectory" not in done:
                    frames.append(x_t[: config.shown].float().cpu())
            if frames:
                done["trajectory"] = torch.stack(frames, 1)  # (shown, frames, C, h, w)
            done["samples"] = torch.cat([done["samples"], x_t.float().cpu()])
            if given.main.labels is not None:
                done["labels"] = torch.cat([done["labels"], given.main.labels.byte().cpu()])
            progress.update(len(part))
            if scratch.due() or scratch.signal or part is mine[-1]:
                scratch.save(len(done["samples"]), done)
            if scratch.signal:
                raise scratch.interrupted(scratch.signal)
    scratch.finished()
    gathered = {name: parallel.gather(done[name]) for name in ("samples", *(["labels"] if denoiser.class_sizes else []))}
    leave()
    job.save("samples", {name: torch.cat(parts) for name, parts in gathered.items()} | {"trajectory": done["trajectory"]}, [artifact, guide])


def check_room(job: Job[Config], size: int) -> None:
    """Raises: InputError unless there is room on disk and in memory for samples of so many bytes each."""
    n, at_once = job.config.n, job.config.batch_size * size * ACTIVATIONS if job.device == "cpu" else 0
    check_space(job.name, SCRATCH, (KEPT + 1) * n * size, 4 * n * size, at_once)


main = stage("sample", Config, run, __doc__, parallel=True)

if __name__ == "__main__":
    main()
