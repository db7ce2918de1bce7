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

    n: int = Field(ge=1, description="generated images, and held-out ones")
    percentile: float = Field(gt=0, lt=100, description="a generated image is near when it is nearer than this percentile of held-out images")
    pairs: int = Field(ge=1, description="closest pairs to show")


def run(job: Job[Config]) -> None:
    import torch

    from ldm.artifacts import merge_lineage
    from ldm.classifier import Classifier, in_batches
    from ldm.pictures import png, tile
    from ldm.quality import nearest, share_closer

    config = job.config
    images, classifier, generated = (job.load(kind) for kind in ("images", "classifier", "generated"))
    merge_lineage([images, classifier, generated])
    network = Classifier.from_artifact(classifier).to(job.device)
    sets = {"train": images["train_images"], "generated": generated["images"][: config.n], "held_out": images["test_images"][: config.n]}
    spaces = {
        "features": lambda x: in_batches(network.features, x.to(job.device)).cpu().numpy(),
        "pixels": lambda x: (x.flatten(1).float() / 255).numpy(),
    }
    values: dict[str, object] = {"data": images.config["data"], "n": len(sets["generated"]), "percentile": config.percentile}
    distances, pairs = {}, []
    for space, view in track(spaces.items(), len(spaces), "space", job.name, lambda _: 1):
        train = view(sets["train"])
        found = {name: nearest(view(sets[name]), train) for name in ("generated", "held_out")}
        made, real = found["generated"][0], found["held_out"][0]
        values[f"near_in_{space}"] = share_closer(made, real, config.percentile)
        values[f"median_ratio_in_{space}"] = float(_median(made) / _median(real))
        distances[space] = {name: d for name, (d, _) in found.items()}
        closest = made.argsort()[: config.pairs]
        pairs += [sets["generated"][closest], sets["train"][found["generated"][1][closest]]]
    job.write("memorisation.json", json.dumps(values, indent=1).encode())
    job.write("closest_pairs.png", png(tile(torch.cat(pairs), config.pairs)))
    job.write("distances.png", figure(distances))


def _median(x: np.ndarray) -> float:
    import numpy as np

    return float(np.median(x))


def figure(distances: dict[str, dict[str, np.ndarray]]) -> bytes:
    """PNG: the distribution of the distances to the nearest training image, in each space."""
    import io

    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 3), layout="constrained")
    for ax, (space, sets) in zip(picture.subplots(1, len(distances)), distances.items(), strict=True):
        for name, d in sets.items():
            ax.hist(d, bins=80, histtype="step", density=True, label=name.replace("_", "-"))
        ax.set(title=space, xlabel="distance to the nearest training image", yticks=[])
        ax.legend()
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


main = stage("memorisation", Config, run, __doc__)

if __name__ == "__main__":
    main()
