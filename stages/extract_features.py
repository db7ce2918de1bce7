"""Compute the features of all real images, in both classifiers, once."""

from __future__ import annotations

from pydantic import Field

from ldm.config import Section
from ldm.errors import InputError
from stages.cli import Job, stage


class Config(Section):
    """How to run; nothing here changes the result beyond rounding."""

    batch_size: int = Field(ge=1, description="images at once")


def run(job: Job[Config]) -> None:
    from ldm.classifier import Classifier, in_batches

    inputs = job.load_all()
    first, second, images = (inputs[kind] for kind in ("classifier", "second_classifier", "images"))
    if first.config["classifier"] == second.config["classifier"]:
        raise InputError(f"{first.path} and {second.path} are both {first.config['classifier']!r}; the second one must be of another shape to check the first")
    tensors = {}
    for space, artifact in (("", first), ("_second", second)):
        features = Classifier.from_artifact(artifact).to(job.device).features
        for split in ("train", "validation", "test"):
            tensors[f"{split}{space}"] = in_batches(features, images[f"{split}_images"].to(job.device), job.config.batch_size)
    job.save("features", tensors, list(inputs.values()))


main = stage("extract_features", Config, run, __doc__)

if __name__ == "__main__":
    main()
