"""Draw standardised latents from the diffusion model.

Every sample has its own random stream, from (seed, index): neither the batch size nor asking
for one sample alone (--set first=17 --set n=1) changes it beyond rounding.
"""

from __future__ import annotations

from pydantic import Field

from ldm import choices
from ldm.config import ChoiceSection, OptionTable, Section, choice
from stages.cli import Job, stage, warn
from stages.progress import track


class Guidance(Section):
    """Autoguidance by a network of earlier training."""

    weight: float = Field(ge=1, description="1: none; above: away from the guide's mistakes")
    sigma_min: float = Field(ge=0, description="smallest σ̄ at which samples are guided")
    sigma_max: float = Field(gt=0, description="largest σ̄ at which samples are guided")


class Config(ChoiceSection):
    """The sampler, its levels and the number of samples."""

    seed: int = Field(ge=0, lt=2**63, description="seed of the samples' random streams")
    first: int = Field(ge=0, description="index of the first sample")
    n: int = Field(ge=1, description="number of samples")
    batch_size: int = Field(ge=1, description="samples drawn at once")
    steps: int = Field(ge=1, description="steps of the sampler")
    sampler: str = choice("samplers", "the sampler")
    samplers: OptionTable
    spacing: str = choice("spacings", "where the noise levels of the steps lie")
    spacings: OptionTable
    guidance: Guidance
    shown: int = Field(ge=1, description="samples whose states are kept for the animation")


def run(job: Job[Config]) -> None:
    import torch

    from ldm.denoiser import Guided
    from ldm.sampling import Streams, states

    config, artifact, guide = job.config, job.load("denoiser"), job.load("guide")
    denoiser = Guided.from_artifacts(artifact, guide, **config.guidance.model_dump(), device=job.device)
    warn(job.name, denoiser.schedule.wrong_start())
    sampler = choices.build(*config.chosen("sampler"))
    sigmas = choices.build(*config.chosen("spacing"))(denoiser.schedule, config.steps)
    indices = range(config.first, config.first + config.n)
    parts = [indices[i : i + config.batch_size] for i in range(0, config.n, config.batch_size)]
    samples, shown = [], None
    with torch.inference_mode():
        for part in track(parts, config.n, "img", job.name, len):
            noise = Streams(config.seed, part, artifact.config["shape"], job.device)
            frames = []
            for x_t in states(denoiser, sampler, sigmas, noise):
                if shown is None:
                    frames.append(x_t[: config.shown].float().cpu())
            samples.append(x_t.float().cpu())
            if shown is None:
                shown = torch.stack(frames, 1)  # (shown, frames, C, h, w)
    job.save("samples", {"samples": torch.cat(samples), "trajectory": shown}, [artifact, guide])


main = stage("sample", Config, run, __doc__)

if __name__ == "__main__":
    main()
