"""Train the denoising network on standardised latents, a fresh posterior draw every step; given the class, if so wished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from ldm import choices
from ldm.config import ChoiceSection, OptionTable, choice, parse_options
from ldm.errors import InputError
from ldm.optimisation import Optimisation
from stages.cli import Job, stage, warn
from stages.training import fit

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from ldm.artifacts import Artifact
    from ldm.training import Record


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
    loss: str = choice("losses", "how an error is penalised")
    losses: OptionTable
    time: str = choice("times", "how training times are drawn")
    times: OptionTable
    optimisation: Optimisation
    flip: float = Field(ge=0, le=1, description="share of the training images that are mirrored left to right; without an autoencoder only")
    class_labels: bool = Field(default=False, description="whether the network is given each image's class, so that classes can be asked for")
    guide_step: int = Field(ge=1, description="step whose averaged network is kept as the guide of autoguidance; a multiple of record_every")

    @model_validator(mode="after")
    def _choices_fit_together(self) -> Config:
        a, _ = choices.build(*self.chosen("target"))(0.0, 1.0)
        schedule: Any = parse_options(*self.chosen("schedule"))
        if a == 0 and schedule.zero_terminal_snr:
            raise InputError(f"target {self.target!r} cannot be inverted at alpha = 0, where the schedule {self.schedule!r} starts; choose x0, v, flow or edm")
        if self.loss != "l2" and self.weighting != "uniform":
            raise InputError(f"weighting {self.weighting!r} is derived for the squared error; with loss {self.loss!r} choose weighting uniform, or loss l2")
        if self.class_labels and not choices.takes("networks", self.network, "classes"):
            able = [name for name in choices.known("networks") if choices.takes("networks", name, "classes")]
            raise InputError(f"network {self.network!r} takes no classes; choose {', '.join(able)}, or set class_labels to false")
        every, steps = self.optimisation.record_every, self.optimisation.steps
        if self.guide_step % every or self.guide_step > steps:
            raise InputError(f"guide_step {self.guide_step} must be a multiple of record_every {every} and at most steps {steps}")
        return self


def run(job: Job[Config]) -> None:
    import torch

    from ldm.denoiser import Denoiser
    from ldm.latents import Standardiser, draw
    from ldm.loss import diffusion_loss
    from ldm.parallel import share
    from ldm.training import Batches, Training

    config, latents = job.config, job.load("latents")
    torch.manual_seed(config.seed)
    generator = torch.Generator(job.device).manual_seed(config.seed)
    standardiser = Standardiser.from_artifact(latents, job.device)
    penalty, weighting, times = (choices.build(*config.chosen(word)) for word in ("loss", "weighting", "time"))
    posterior = {s: (latents[f"{s}_mean"].to(job.device), latents[f"{s}_log_variance"].to(job.device)) for s in ("train", "validation")}
    mean, log_variance = posterior["train"]
    labels, sizes = classes(job, latents) if config.class_labels else ({}, [])
    denoiser = Denoiser.from_config(config.resolved(), mean.shape[1:], len(sizes))
    denoiser.network.to(job.device)
    warn(job.name, denoiser.schedule.wrong_start())
    if config.flip and "vae" in latents.lineage:
        raise InputError(f"flip {config.flip:g} mirrors images, not the latents of an autoencoder; set train_diffusion.flip to 0")
    order, mine = Batches(len(mean), config.optimisation.batch_size, generator), share(config.optimisation.batch_size)

    def noisy_loss(denoiser: Denoiser, mean: Tensor, log_variance: Tensor, source: Generator, part: slice = slice(None)) -> Tensor:
        """The loss per sample, of a part of the batch, at fresh draws of the posterior, the noise and the time."""
        eps = torch.randn(2, *mean.shape, generator=source, device=mean.device)[:, part]
        t = times(denoiser.schedule, len(mean), source)[part]
        x0 = standardiser.standardise(draw(mean[part], log_variance[part], eps[0]))
        return diffusion_loss(denoiser, penalty, weighting, x0, eps[1], t)

    def given(denoiser: Denoiser, split: str, index: Tensor) -> Denoiser:
        return denoiser.given(labels[split][index] if labels else None)

    def loss() -> Tensor:
        index = next(order)
        x = mean[index]
        if config.flip:
            mirrored = torch.rand(len(x), generator=generator, device=x.device) < config.flip
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        return noisy_loss(given(denoiser, "train", index[mine]), x, log_variance[index], generator, mine).mean()

    @torch.inference_mode()
    def validate(network: nn.Module) -> float:
        fixed = torch.Generator(job.device).manual_seed(0)
        averaged = Denoiser(network, denoiser.schedule, denoiser.target)
        means, log_variances = posterior["validation"]
        parts = torch.arange(len(means), device=job.device).split(500)
        return torch.cat([noisy_loss(given(averaged, "validation", i), means[i], log_variances[i], fixed) for i in parts]).mean().item()

    guide: dict[str, Tensor] = {}

    def keep_guide(record: Record) -> None:
        if record.step == config.guide_step:
            guide.update({name: tensor.clone() for name, tensor in record.averaged.state_dict().items()})

    denoiser.network.train()
    averaged = fit(job, Training(denoiser.network, loss, config.optimisation, order), mean[0].numel(), validate, keep_guide, guide)
    known = {"shape": list(mean.shape[1:])} | ({"class_sizes": sizes} if sizes else {})
    kept = job.save("guide", guide, [latents], **known)
    job.save("denoiser", averaged.state_dict(), [latents, kept], **known)  # the guide is an ancestor, so that no other one goes with it


def classes(job: Job[Config], latents: Artifact) -> tuple[dict[str, Tensor], list[int]]:
    """The class of each training and validation image, and how many training images each class has.

    Raises: InputError where there are no images, or others than those of the latents.
    """
    from ldm.artifacts import merge_lineage

    if "images" not in job.inputs:
        raise InputError("class_labels needs the labels of the images; add the artifact of prepare_data to the deps of train_diffusion in dvc.yaml")
    images = job.load("images")
    merge_lineage([images, latents])
    labels = {split: images[f"{split}_labels"].to(job.device).long() for split in ("train", "validation")}
    if any(len(labels[split]) != len(latents[f"{split}_mean"]) for split in labels):
        raise InputError(f"{images.path} and {latents.path} do not belong together: they are of different numbers of images")
    known = 1 + max(int(of.max()) for of in labels.values())
    return labels, labels["train"].bincount(minlength=known).tolist()


main = stage("train_diffusion", Config, run, __doc__, parallel=True)

if __name__ == "__main__":
    main()
