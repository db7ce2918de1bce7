"""Train the denoising network on standardised latents, a fresh posterior draw every step; given the class, if so wished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

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
    from ldm.denoiser import Denoiser
    from ldm.latents import Standardiser
    from ldm.loss import Penalty, Times, Weighting
    from ldm.training import Record


class Config(ChoiceSection):
    """Network, schedule, target, weighting and times are independent choices."""

    seed: int = Field(ge=0, lt=2**63, description="seed of the weights, the order and all noise")
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


class Split(NamedTuple):
    """The posterior of every latent of a split, (N, c, h, w), and its class, (N,), where the network is told it."""

    mean: Tensor
    log_variance: Tensor
    labels: Tensor | None

    def at(self, index: Tensor | slice) -> Split:
        return Split(self.mean[index], self.log_variance[index], None if self.labels is None else self.labels[index])


class Objective(NamedTuple):
    """What a training lowers: the loss at draws of the posterior, the noise and the time."""

    standardiser: Standardiser
    penalty: Penalty
    weighting: Weighting
    times: Times

    def __call__(self, denoiser: Denoiser, batch: Split, source: Generator, part: slice = slice(None)) -> Tensor:
        """The loss per sample of a part of the batch; what is drawn is the same for any part."""
        import torch

        from ldm.latents import draw
        from ldm.loss import diffusion_loss

        eps = torch.randn(2, *batch.mean.shape, generator=source, device=batch.mean.device)[:, part]
        t = self.times(denoiser.schedule, len(batch.mean), source)[part]
        mean, log_variance, labels = batch.at(part)
        x0 = self.standardiser.standardise(draw(mean, log_variance, eps[0]))
        return diffusion_loss(denoiser.given(labels), self.penalty, self.weighting, x0, eps[1], t)


def run(job: Job[Config]) -> None:
    import torch

    from ldm.denoiser import Denoiser
    from ldm.latents import Standardiser
    from ldm.parallel import share
    from ldm.training import Batches, Training

    config, latents = job.config, job.load("latents")
    torch.manual_seed(config.seed)
    generator = torch.Generator(job.device).manual_seed(config.seed)
    labels, sizes = classes(job, latents) if config.class_labels else ({}, [])
    train, validation = (
        Split(latents[f"{name}_mean"].to(job.device), latents[f"{name}_log_variance"].to(job.device), labels.get(name)) for name in ("train", "validation")
    )
    objective = Objective(Standardiser.from_artifact(latents, job.device), *(choices.build(*config.chosen(word)) for word in ("loss", "weighting", "time")))
    denoiser = Denoiser.from_config(config.resolved(), train.mean.shape[1:], sizes)
    denoiser.network.to(job.device)
    warn(job.name, denoiser.schedule.wrong_start())
    if config.flip and "vae" in latents.lineage:
        raise InputError(f"flip {config.flip:g} mirrors images, not the latents of an autoencoder; set train_diffusion.flip to 0")
    order, mine = Batches(len(train.mean), config.optimisation.batch_size, generator), share(config.optimisation.batch_size)

    def loss() -> Tensor:
        batch = train.at(next(order))
        if config.flip:
            mirrored = torch.rand(len(batch.mean), generator=generator, device=job.device) < config.flip
            batch = batch._replace(mean=torch.where(mirrored[:, None, None, None], batch.mean.flip(-1), batch.mean))
        return objective(denoiser, batch, generator, mine).mean()

    @torch.inference_mode()
    def validate(network: nn.Module) -> float:
        fixed = torch.Generator(job.device).manual_seed(0)
        averaged = Denoiser(network, denoiser.schedule, denoiser.target)
        parts = [slice(i, i + 500) for i in range(0, len(validation.mean), 500)]
        return torch.cat([objective(averaged, validation.at(part), fixed) for part in parts]).mean().item()

    guide: dict[str, Tensor] = {}

    def keep_guide(record: Record) -> None:
        if record.step == config.guide_step:
            guide.update({name: tensor.clone() for name, tensor in record.averaged.state_dict().items()})

    denoiser.network.train()
    averaged = fit(job, Training(denoiser.network, loss, config.optimisation, order), train.mean[0].numel(), validate, keep_guide, guide)
    known = {"shape": list(train.mean.shape[1:])} | ({"class_sizes": sizes} if sizes else {})
    kept = job.save("guide", guide, [latents], **known)
    job.save("denoiser", averaged.state_dict(), [latents, kept], **known)  # the guide is an ancestor, so that no other one goes with it


def classes(job: Job[Config], latents: Artifact) -> tuple[dict[str, Tensor], list[int]]:
    """The class of each training and validation image, and how many training images each class has.

    Raises: InputError where there are no images, others than those of the latents, or none for the training of a class.
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
    sizes = labels["train"].bincount(minlength=known)
    unseen = labels["validation"][sizes[labels["validation"]] == 0]
    if len(unseen):
        raise InputError(f"class {unseen[0]} has validation images, but none for training; give it more images, or set class_labels to false")
    return labels, sizes.tolist()


main = stage("train_diffusion", Config, run, __doc__, parallel=True)

if __name__ == "__main__":
    main()
