"""Train the classifier in whose 128 features the Fréchet distance is taken."""

import csv
import io

from pydantic import Field

from ldm import NonNegative, Options, Rate, Section, Seed, choice, from_uint8, networks, training
from ldm.lazy import Module, Tensor, torch
from ldm.networks import classifiers
from ldm.training import Optimisation
from stages.runner import Run, fit, stage


class Config(Section):
    """The network, the augmentation and the training.

    seed: seed of the weights, the order and the augmentation
    classifier: the network
    shift: augmentation, largest shift in pixels
    rotation: augmentation, largest rotation in degrees
    scale: augmentation, largest relative change of size
    label_smoothing: share of the target that is spread over all classes
    """

    seed: Seed
    classifier: str = choice(classifiers)
    classifiers: Options
    shift: NonNegative = 0.0
    rotation: float = Field(0.0, ge=0, le=45)
    scale: float = Field(0.0, ge=0, lt=0.5)
    label_smoothing: Rate = 0.0
    optimisation: Optimisation


def compute(run: Run[Config], kind: str = "classifier") -> None:
    config, images = run.config, run.load("images")
    torch.manual_seed(config.seed)
    generator = torch.Generator(run.device).manual_seed(config.seed)
    tensors = {name: tensor.to(run.device) for name, tensor in images.tensors.items()}
    x, y = tensors["train_images"], tensors["train_labels"].long()
    classes, shape = images.config["classes"], list(x.shape[1:])
    classifier = networks.classifier.Classifier.from_config(config.resolved(), shape, classes).to(run.device)
    order = training.loop.Batches(len(x), config.optimisation.batch_size, generator)
    cross_entropy = torch.nn.functional.cross_entropy
    bounds = {"shift": config.shift, "rotation": config.rotation, "scale": config.scale}

    def loss(index: Tensor) -> Tensor:
        batch = networks.classifier.augment(from_uint8(x[index]), generator, **bounds)
        return cross_entropy(classifier(batch), y[index], label_smoothing=config.label_smoothing)

    def logits_and_labels(network: Module, split: str) -> tuple[Tensor, Tensor]:
        logits = networks.classifier.in_batches(network, tensors[f"{split}_images"])
        return logits, tensors[f"{split}_labels"].long()

    def validate(network: Module) -> float:
        return cross_entropy(*logits_and_labels(network, "validation")).item()

    averaged = fit(run, training.loop.Training(classifier, loss, config.optimisation, order), validate)
    logits, labels = logits_and_labels(averaged, "test")
    predicted = logits.argmax(1)
    accuracy, loss_of_test = (predicted == labels).double().mean().item(), cross_entropy(logits, labels).item()
    metrics = {"data": images.config["data"], "n": len(labels), "accuracy": accuracy, "loss": loss_of_test}
    names = images.config["class_names"]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["actual", "predicted"])
    writer.writerows((names[a], names[p]) for a, p in zip(labels.tolist(), predicted.tolist(), strict=True))
    run.write("confusion.csv", table.getvalue().encode())
    run.write_json("metrics.json", metrics)
    run.save(kind, averaged.state_dict(), [images], classes=classes, shape=shape)


main = stage("train_classifier", Config, compute, __doc__)

if __name__ == "__main__":
    main()
