"""Train the denoising network on standardised latents, a fresh posterior draw every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from ldm import choices
from ldm.config import ChoiceSection, OptionTable, choice
from ldm.errors import InputError
from ldm.optimisation import Optimisation
from stages.cli import Job, stage
from stages.training import fit

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


class Config(ChoiceSection):
    """Network, schedule, target, weighting and times are independent choices."""

    seed: int = Field(ge=0, description="seed of the weights, the order and all noise")
    network: str = choice("networks", "the network that predicts the target")
    networks: OptionTable
    schedule: str = choice("schedules", "the noise schedule")
    schedules: OptionTable
    target: str = choice("targets", "what the network predicts")
    targets: OptionTable
    weighting: str = choice("weightings", "the weight of the loss over the noise level")
    weightings: OptionTable
    time: str = choice("times", "how training times are drawn")
    times: OptionTable
    optimisation: Optimisation

    @model_validator(mode="after")
    def _target_fits_schedule(self) -> Config:
        a, _ = choices.build(*self.chosen("target"))(0.0, 1.0)
        if a == 0 and choices.module("schedules", self.schedule).ZERO_TERMINAL_SNR:
            raise InputError(f"target {self.target!r} cannot be inverted at alpha = 0, where the schedule {self.schedule!r} starts; choose x0, v or flow")
        return self


def run(job: Job[Config]) -> None:
    import torch

    from ldm.denoiser import Denoiser
    from ldm.latents import Standardiser, draw
    from ldm.loss import diffusion_loss
    from ldm.training import batches

    config, latents = job.config, job.load("latents")
    torch.manual_seed(config.seed)
    generator = torch.Generator(job.device).manual_seed(config.seed)
    standardiser = Standardiser.from_artifact(latents, job.device)
    weighting, times = choices.build(*config.chosen("weighting")), choices.build(*config.chosen("time"))
    posterior = {s: (latents[f"{s}_mean"].to(job.device), latents[f"{s}_log_variance"].to(job.device)) for s in ("train", "validation")}
    mean, log_variance = posterior["train"]
    denoiser = Denoiser.from_config(config.resolved(), mean.shape[1:])
    denoiser.network.to(job.device)
    order = batches(len(mean), config.optimisation.batch_size, generator)

    def noisy_loss(denoiser: Denoiser, mean: Tensor, log_variance: Tensor, source: Generator) -> Tensor:
        """The loss per sample at fresh draws of the posterior, the noise and the time."""
        eps = torch.randn(2, *mean.shape, generator=source)
        x0 = standardiser.standardise(draw(mean, log_variance, eps[0]))
        return diffusion_loss(denoiser, weighting, x0, eps[1], times(len(x0), source))

    def loss() -> Tensor:
        index = next(order)
        return noisy_loss(denoiser, mean[index], log_variance[index], generator).mean()

    @torch.inference_mode()
    def validate(network: nn.Module) -> float:
        fixed = torch.Generator(job.device).manual_seed(0)
        averaged = Denoiser(network, denoiser.schedule, denoiser.target)
        means, log_variances = (part.split(500) for part in posterior["validation"])
        return torch.cat([noisy_loss(averaged, m, v, fixed) for m, v in zip(means, log_variances, strict=True)]).mean().item()

    denoiser.network.train()
    averaged = fit(job, denoiser.network, loss, validate)
    job.save("denoiser", averaged.state_dict(), [latents], shape=list(mean.shape[1:]))


main = stage("train_diffusion", Config, run, __doc__)

if __name__ == "__main__":
    main()
