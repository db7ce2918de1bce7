"""Train the denoising network on standardised latents, drawn afresh in every step; optionally class-conditional."""

from __future__ import annotations

from inspect import signature
from typing import Any

from pydantic import model_validator

from ldm import Artifact, Count, InputError, Options, Section, Seed, Share, choice, diffusion, merge_lineage, training
from ldm.lazy import Module, Tensor, torch
from ldm.networks import Posterior, Standardiser, networks
from ldm.training import Optimisation
from stages.runner import Run, fit, stage, warn


class Config(Section):
    """The network, the noise schedule, what the network predicts, and the loss; each is chosen independently.

    seed: seed of the weights, the order and all noise
    network: the network
    schedule: the noise schedule
    prediction: what the network predicts
    weighting: the weight of the loss over the noise level
    penalty: how an error is penalised
    timestep_sampling: how training times are drawn
    flip: share of the images that are mirrored left to right; 0 unless the latents are pixels
    class_labels: give the network each image's class, so that classes can be asked for
    guide_step: step whose averaged network is kept as the guide of autoguidance; a multiple of record_every
    """

    seed: Seed
    network: str = choice(networks)
    networks: Options
    schedule: str = choice(diffusion.schedules)
    schedules: Options
    prediction: str = choice(diffusion.predictions)
    predictions: Options
    weighting: str = choice(diffusion.weightings)
    weightings: Options
    penalty: str = choice(diffusion.penalties)
    penalties: Options
    timestep_sampling: str = choice(diffusion.timestep_samplings)
    timestep_samplings: Options
    optimisation: Optimisation
    flip: Share = 0.0
    class_labels: bool = False
    guide_step: Count

    @model_validator(mode="after")
    def _choices_fit_together(self) -> Config:
        schedule = self.build("schedule")
        if schedule.alpha_t(torch.ones(1)) == 0 and not diffusion.invertible_without_signal(self.build("prediction")):
            raise InputError(f"prediction {self.prediction!r} cannot be inverted at alpha = 0; use x0, v, flow or edm")
        if self.penalty != "l2" and self.weighting != "none":
            raise InputError(f"weighting {self.weighting!r} needs penalty l2, not {self.penalty!r}; or choose none")
        if self.class_labels and not takes_classes(self.network):
            able = ", ".join(name for name in sorted(networks.functions) if takes_classes(name))
            raise InputError(f"network {self.network!r} takes no classes; choose {able}, or set class_labels to false")
        every, steps = self.optimisation.record_every, self.optimisation.steps
        if self.guide_step > steps:
            raise InputError(f"guide_step {self.guide_step} is beyond the last of {steps} steps; lower it")
        if self.guide_step % every:
            raise InputError(f"guide_step {self.guide_step} is no multiple of record_every {every}; change one of them")
        return self


def takes_classes(network: str) -> bool:
    """Whether a network can be told the class of its input."""
    return "classes" in signature(networks.build(network)).parameters


def compute(run: Run[Config]) -> None:
    config, latents = run.config, run.load("latents")
    torch.manual_seed(config.seed)
    generator = torch.Generator(run.device).manual_seed(config.seed)
    labels, classes = read_labels(run, latents) if config.class_labels else ({}, {})
    train = Posterior(latents["train_mean"].to(run.device), latents["train_log_variance"].to(run.device))
    validation = Posterior(latents["validation_mean"].to(run.device), latents["validation_log_variance"].to(run.device))
    loss = diffusion.DiffusionLoss(config.build("penalty"), config.build("weighting"))
    standardiser = Standardiser.from_artifact(latents, run.device)
    objective = diffusion.Objective(standardiser, loss, config.build("timestep_sampling"))
    denoiser = diffusion.Denoiser.from_config(config.resolved(), train.mean.shape[1:], classes.get("class_sizes", ()))
    denoiser.network.to(run.device)
    warn(run.name, denoiser.schedule.wrong_start())
    if config.flip and "vae" in latents.lineage:
        raise InputError(f"flip {config.flip:g} mirrors images, not latents of an autoencoder; set flip to 0")
    size = config.optimisation.batch_size
    order, local = training.loop.Batches(len(train.mean), size, generator), training.distributed.local_slice(size)

    def batch_loss(index: Tensor) -> Tensor:
        batch, classes = train.at(index), labels["train"][index] if labels else None
        if config.flip:
            mirrored = torch.rand(len(index), generator=generator, device=run.device) < config.flip
            mean = torch.where(mirrored[:, None, None, None], batch.mean.flip(-1), batch.mean)
            batch = batch._replace(mean=mean)
        return objective(denoiser, batch, classes, generator, local).mean()

    @torch.inference_mode()
    def validate(network: Module) -> float:
        fixed = torch.Generator(run.device).manual_seed(0)
        averaged = diffusion.Denoiser(network, denoiser.schedule, denoiser.prediction)
        losses = []
        for i in range(0, len(validation.mean), 500):
            rows = slice(i, i + 500)
            classes = labels["validation"][rows] if labels else None
            losses.append(objective(averaged, validation.at(rows), classes, fixed))
        return torch.cat(losses).mean().item()

    denoiser.network.train()
    trainer = training.loop.Training(denoiser.network, batch_loss, config.optimisation, order)
    guide: dict[str, Tensor] = {}
    averaged = fit(run, trainer, validate, config.guide_step, guide)
    about = {"shape": list(train.mean.shape[1:])} | classes
    saved = run.save("guide", guide, [latents], **about)
    # the denoiser's file names the guide as its parent, so that sampling refuses any other guide
    run.save("denoiser", averaged.state_dict(), [latents, saved], **about)


def read_labels(run: Run[Config], latents: Artifact) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The class of each training and validation image, and what the artifacts say of classes: sizes and names.

    The labels are on the device, (N,) in int64; the sizes are numbers of training images. Raises: InputError where
    dvc.yaml gives the stage no images, where these are not the images that the latents encode, or where a class has
    validation images but none for training.
    """
    if "images" not in run.inputs:
        raise InputError("class_labels needs the images of prepare_data among the deps of train_diffusion in dvc.yaml")
    images = run.load("images")
    merge_lineage([images, latents])
    labels = {split: images[f"{split}_labels"].to(run.device).long() for split in ("train", "validation")}
    if any(len(labels[split]) != len(latents[f"{split}_mean"]) for split in labels):
        raise InputError(f"{images.path} and {latents.path} do not belong together: their numbers of images differ")
    names = images.config["class_names"]
    sizes = labels["train"].bincount(minlength=len(names))
    unseen = labels["validation"][sizes[labels["validation"]] == 0]
    if len(unseen):
        raise InputError(f"class {names[unseen[0]]} has validation images, but none for training; unset class_labels")
    return labels, {"class_sizes": sizes.tolist(), "class_names": names}


main = stage("train_diffusion", Config, compute, __doc__, parallel=True)

if __name__ == "__main__":
    main()
