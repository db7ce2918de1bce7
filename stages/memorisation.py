"""Look for memorised training images: how near do generated images lie to the training set, compared with held-out ones?

In the classifier's features and in pixels: a statistic, the two distributions of distances, and the closest pairs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import Field

from ldm.config import Section
from stages.cli import Job, stage
from stages.progress import track

if TYPE_CHECKING:
    import numpy as np


class Config(Section):
    """What counts as near, and how much is shown."""

    seed: int = Field(ge=0, lt=2**63, description="seed of the subsets")
    n: int = Field(ge=1, description="generated images, and held-out ones; where there are fewer, all")
    percentile: float = Field(gt=0, lt=100, description="a generated image is near when it is nearer than this percentile of held-out images")
    pairs: int = Field(ge=1, description="closest pairs to show")


def run(job: Job[Config]) -> None:
    import numpy as np
    import torch

    from ldm.classifier import Classifier, in_batches
    from ldm.pictures import png, tile
    from ldm.quality import nearest, share_closer, subset

    config, inputs = job.config, job.load_all()
    images, features, n = inputs["images"], inputs["features"], min(config.n, len(inputs["images"]["test_images"]))
    train, made, real = images["train_images"], subset(inputs["generated"]["images"], n, config.seed), subset(images["test_images"], n, config.seed)
    network = Classifier.from_artifact(inputs["classifier"]).to(job.device)
    of_made = in_batches(network.features, made.to(job.device)).cpu()
    spaces = {
        "features": (features["train"], of_made, subset(features["test"], n, config.seed)),
        "pixels": tuple(x.flatten(1).float() / 255 for x in (train, made, real)),
    }
    values: dict[str, object] = {"data": images.config["data"], "n": len(made), "percentile": config.percentile}
    distances, pairs = {}, []
    for space, views in track(spaces.items(), len(spaces), "space", job.name, lambda _: 1):
        known, generated, held_out = (view.numpy() for view in views)
        (near, which), (near_held_out, _) = nearest(generated, known), nearest(held_out, known)
        values[f"near_in_{space}"] = share_closer(near, near_held_out, config.percentile)
        values[f"median_ratio_in_{space}"] = float(np.median(near) / np.median(near_held_out))
        distances[space] = {"generated": near, "held_out": near_held_out}
        closest = near.argsort()[: config.pairs]
        pairs += [made[closest], train[which[closest]]]
    job.write("memorisation.json", json.dumps(values, indent=1).encode())
    job.write("closest_pairs.png", png(tile(torch.cat(pairs), config.pairs)))
    job.write("distances.png", figure(distances))


def figure(distances: dict[str, dict[str, np.ndarray]]) -> bytes:
    """PNG: the distribution of the distances to the nearest training image, in each space."""
    from matplotlib.figure import Figure

    from stages.figures import png_of

    picture = Figure(figsize=(9, 3), layout="constrained")
    for ax, (space, sets) in zip(picture.subplots(1, len(distances)), distances.items(), strict=True):
        for name, d in sets.items():
            ax.hist(d, bins=80, histtype="step", density=True, label=name.replace("_", "-"))
        ax.set(title=space, xlabel="distance to the nearest training image", yticks=[])
        ax.legend()
    return png_of(picture)


main = stage("memorisation", Config, run, __doc__)

if __name__ == "__main__":
    main()
