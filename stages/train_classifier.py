"""Train the classifier whose 128 features the Fréchet distance is taken in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import ChoiceSection, OptionTable, choice
from ldm.optimisation import Optimisation
from stages.cli import Job, stage
from stages.training import fit

if TYPE_CHECKING:
    from torch import Tensor


class Config(ChoiceSection):
    """The network, the augmentation and the training."""

    seed: int = Field(ge=0, lt=2**63, description="seed of the weights, the order and the augmentation")
    classifier: str = choice("classifiers", "the network")
    classifiers: OptionTable
    shift: float = Field(ge=0, description="augmentation: largest shift, in pixels")
    rotation: float = Field(ge=0, le=45, description="augmentation: largest rotation, in degrees")
    scale: float = Field(ge=0, lt=0.5, description="augmentation: largest relative change of size")
    label_smoothing: float = Field(ge=0, lt=1, description="share of the target spread over all classes")
    optimisation: Optimisation


def run(job: Job[Config], kind: str = "classifier") -> None:
    import torch
    from torch.nn import functional as F

    from ldm.classifier import Classifier, augment, in_batches
    from ldm.pixels import from_uint8
    from ldm.training import Batches, Training

    config, images = job.config, job.load("images")
    torch.manual_seed(config.seed)
    generator = torch.Generator(job.device).manual_seed(config.seed)
    tensors = {name: tensor.to(job.device) for name, tensor in images.tensors.items()}
    x, y = tensors["train_images"], tensors["train_labels"].long()
    classes, shape = images.config["classes"], list(x.shape[1:])
    classifier = Classifier.from_config(config.resolved(), shape, classes).to(job.device)
    order = Batches(len(x), config.optimisation.batch_size, generator)

    def loss() -> Tensor:
        index = next(order)
        batch = augment(from_uint8(x[index]), generator, shift=config.shift, rotation=config.rotation, scale=config.scale)
        return F.cross_entropy(classifier(batch), y[index], label_smoothing=config.label_smoothing)

    def scores(network, split: str) -> tuple[Tensor, Tensor]:
        return in_batches(network, tensors[f"{split}_images"]), tensors[f"{split}_labels"].long()

    def validate(network: Classifier) -> float:
        return F.cross_entropy(*scores(network, "validation")).item()

    averaged = fit(job, Training(classifier, loss, config.optimisation, order), x[0].numel(), validate)
    logits, labels = scores(averaged, "test")
    predicted = logits.argmax(1)
    metrics = {
        "data": images.config["data"],
        "n": len(labels),
        "accuracy": (predicted == labels).double().mean().item(),
        "loss": F.cross_entropy(logits, labels).item(),
    }
    rows = (f"{a},{p}\n" for a, p in zip(labels.tolist(), predicted.tolist(), strict=True))
    job.write("confusion.csv", ("actual,predicted\n" + "".join(rows)).encode())
    job.write("metrics.json", json.dumps(metrics, indent=1).encode())
    job.save(kind, averaged.state_dict(), [images], classes=classes, shape=shape)


main = stage("train_classifier", Config, run, __doc__)

if __name__ == "__main__":
    main()
