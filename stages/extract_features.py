"""Compute the features of all real images, in both classifiers, once."""

from ldm import Count, InputError, Section, networks
from ldm.lazy import torch
from stages.runner import Run, stage, track


class Config(Section):
    """How to run; nothing here changes the result beyond rounding.

    batch_size: images at once
    """

    batch_size: Count


def compute(run: Run[Config]) -> None:
    inputs = run.load_all()
    first, second, images = (inputs[kind] for kind in ("classifier", "second_classifier", "images"))
    if (kind := first.config["classifier"]) == second.config["classifier"]:
        raise InputError(f"{first.path} and {second.path} are both {kind!r}; train two shapes")
    tensors, in_batches = {}, networks.classifier.in_batches
    for space, artifact in (("", first), ("_second", second)):
        features = networks.classifier.Classifier.from_artifact(artifact, run.device).features
        for split in ("train", "validation", "test"):
            pixels = images[f"{split}_images"].to(run.device).split(run.config.batch_size)
            batches = track(pixels, len(pixels), "batch", f"{run.name}: {split}{space}")
            tensors[f"{split}{space}"] = torch.cat([in_batches(features, batch, len(batch)) for batch in batches])
    run.save("features", tensors, list(inputs.values()))


main = stage("extract_features", Config, compute, __doc__)

if __name__ == "__main__":
    main()
