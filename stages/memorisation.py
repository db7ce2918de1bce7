"""Look for memorised training images: how near do generated images lie to the training set, compared with test images?

In the classifier's features and in pixels: a statistic, the two distributions of distances, and the closest pairs.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from ldm import Count, Section, Seed, metrics, networks, png, tile
from ldm.lazy import torch
from stages.runner import Run, new_figure, png_of, stage, track


class Config(Section):
    """What counts as near, and how much is shown.

    seed: seed of the subsets
    n: generated images, and test images; where there are fewer, all
    percentile: a generated image is near when it is nearer than this percentile of the test images
    pairs: closest pairs to show
    """

    seed: Seed
    n: Count
    percentile: Annotated[float, Field(gt=0, lt=100)] = 1.0
    pairs: Count = 12


def compute(run: Run[Config]) -> None:
    config, inputs, quality = run.config, run.load_all(), metrics.quality
    images, features, n = inputs["images"], inputs["features"], min(run.config.n, len(inputs["images"]["test_images"]))
    train, every_generated = images["train_images"], inputs["generated"]["images"]
    generated, test = (quality.subset(x, n, config.seed) for x in (every_generated, images["test_images"]))
    network = networks.classifier.Classifier.from_artifact(inputs["classifier"], run.device)
    generated_features = networks.classifier.in_batches(network.features, generated.to(run.device)).cpu()
    test_features = quality.subset(features["test"], n, config.seed)
    spaces = {"features": (features["train"], generated_features, test_features)}
    spaces["pixels"] = train.flatten(1).float() / 255, generated.flatten(1).float() / 255, test.flatten(1).float() / 255
    values: dict[str, object] = {"data": images.config["data"], "n": len(generated), "percentile": config.percentile}
    distances, pairs = {}, []
    for space, views in track(spaces.items(), len(spaces), "space", run.name, lambda _: 1):
        of_train, of_generated, of_test = (view.numpy() for view in views)
        near, which = quality.nearest(of_generated, of_train)
        near_test, _ = quality.nearest(of_test, of_train)
        values[f"near_in_{space}"] = quality.share_closer(near, near_test, config.percentile)
        values[f"median_ratio_in_{space}"] = float(np.median(near) / np.median(near_test))
        distances[space] = {"generated": near, "test images": near_test}
        closest = near.argsort()[: config.pairs]
        pairs += [generated[closest], train[which[closest]]]
    run.write_json("memorisation.json", values)
    run.write("closest_pairs.png", png(tile(torch.cat(pairs), config.pairs)))
    run.write("distances.png", figure(distances))


def figure(distances: dict[str, dict[str, np.ndarray]]) -> bytes:
    """PNG: the distribution of the distances to the nearest training image, in each space."""
    picture = new_figure(9, 3)
    for ax, (space, sets) in zip(picture.subplots(1, len(distances)), distances.items(), strict=True):
        for name, d in sets.items():
            ax.hist(d, bins=80, histtype="step", density=True, label=name)
        ax.set(title=space, xlabel="distance to the nearest training image", yticks=[])
        ax.legend()
    return png_of(picture)


main = stage("memorisation", Config, compute, __doc__)

if __name__ == "__main__":
    main()
