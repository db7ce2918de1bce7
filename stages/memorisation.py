"""Look for copies of training images among the generated ones, and say what this would find.

An image's score is its distance to the nearest training image over the mean distance to the next ones; a training image
shifted by a pixel or turned by 5 degrees keeps its score. What passes for a copy is set, in each class, by one half of
the validation images; the other half shows the false alarms, and planted copies of training images the power.
"""

from functools import partial
from typing import Annotated

import numpy as np
from pydantic import Field

from ldm import Artifact, Count, InputError, Section, Seed, Several, duplicates, metrics, networks, png, tile
from ldm.lazy import Tensor, torch
from stages.runner import Run, new_figure, png_of, stage, track, warn

PLANTED = ("decoded", "shifted", "turned")


class Config(Section):
    """What passes for a copy, and how much is tried and shown.

    seed: seed of the subsets
    n: generated images; where there are fewer, all
    percentile: an image passes for a copy when its score is at most this percentile of real ones of its class
    neighbours: nearest training images of the score, the first included
    planted: copies of training images of each kind: decoded from their latents, shifted, turned
    pairs: pairs of the lowest scores to show
    """

    seed: Seed
    n: Count
    percentile: Annotated[float, Field(gt=0, lt=100)] = 0.25
    neighbours: Several = 10
    planted: Count = 500
    pairs: Count = 12


def compute(run: Run[Config]) -> None:
    config, inputs, memorisation = run.config, run.load_all(), metrics.memorisation
    images, generated = inputs["images"], inputs["generated"]["images"][: config.n]
    train, labels, real = images["train_images"], images["train_labels"].long(), images["validation_images"]
    if generated.shape[1:] != train.shape[1:]:
        places = f"{inputs['generated'].path} and {images.path}"
        raise InputError(f"{places} do not belong together: their images differ in shape")
    twins = duplicates(real, train)
    one_half, other_half = real[~twins].tensor_split(2)
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))[: config.planted]
    sets = {"generated": generated, "validation": one_half, "other validation": other_half}
    sets |= planted(train[chosen], inputs.get("vae"), run.device, config.seed)
    search = memorisation.Search(train.to(run.device), config.neighbours)
    nearness = {name: search(x) for name, x in track(sets.items(), len(sets), "set", run.name)}
    usual = nearness["validation"]
    classes, share = images.config["classes"], config.percentile / 100
    limits = memorisation.thresholds(usual.score, labels[usual.nearest], classes, share)
    known = torch.bincount(labels[usual.nearest], minlength=classes) > 0
    shares = {}
    for name, (score, nearest) in nearness.items():
        near = labels[nearest]
        shares[name], left_out = share_of_copies(score, limits[near], known[near])
        if left_out:
            why = "they are nearest to training images of a class that no validation image is nearest to"
            warn(run.name, f"{left_out} of {len(score)} {name} images cannot be judged, and are left out: {why}")
    values = {"data": images.config["data"], "n": len(generated), "percentile": config.percentile}
    values |= {"copies": shares["generated"], "false_alarms": shares["other validation"]}
    values |= {f"found_{name}": shares.get(name) for name in PLANTED}
    run.write_json("memorisation.json", values | {"twins_left_out": int(twins.sum())})
    lowest = nearness["generated"].score.argsort()[: config.pairs]
    pairs = torch.cat([generated[lowest], train[nearness["generated"].nearest[lowest]]])
    run.write("closest_pairs.png", png(tile(pairs, len(lowest))))
    run.write("scores.png", figure({name: nearness[name].score.numpy() for name in nearness}))


def share_of_copies(score: Tensor, limits: Tensor, known: Tensor) -> tuple[float | None, int]:
    """The share of images that pass for copies, None where none can be judged, and the number of those that cannot.

    score: (n,); limits: (n,), the highest score of a copy; known: (n,), whether validation images have set the limit.
    Without a limit an exact copy alone, of score 0, can be judged.
    """
    judged = known | (score <= 0)
    copies = (score <= limits)[judged]
    return copies.double().mean().item() if len(copies) else None, len(score) - len(copies)


def planted(originals: Tensor, vae: Artifact | None, device: str, seed: int) -> dict[str, Tensor]:
    """Copies of training images as a model could make them, uint8 (n, C, H, W) each; decoded ones with a VAE alone."""
    memorisation, autoencoder = metrics.memorisation, networks.autoencoder
    kinds = {
        "shifted": [partial(memorisation.shifted, rows=rows, columns=columns) for rows, columns in memorisation.SHIFTS],
        "turned": [partial(memorisation.turned, angle=angle) for angle in memorisation.ANGLES],
    }
    around = memorisation.background(originals)
    sets: dict[str, Tensor] = {}
    for kind, changes in kinds.items():
        parts = [change(originals[i :: len(changes)] - around) + around for i, change in enumerate(changes)]
        sets[kind] = torch.cat(parts).round().byte()
    if vae is None:
        return sets
    network = autoencoder.from_artifact(vae, device)
    posterior = autoencoder.encode_images(network, originals.to(device))
    eps = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(seed)).to(device)
    return {"decoded": autoencoder.decode_images(network, posterior.draw(eps)).cpu()} | sets


def figure(scores: dict[str, np.ndarray]) -> bytes:
    """PNG: the distribution of the scores of each set."""
    picture = new_figure(9, 3)
    ax = picture.add_subplot()
    for name, score in scores.items():
        ax.ecdf(score, label=name)
    ax.set(xlabel="distance to the nearest training image / mean distance to the next ones", ylabel="share of images")
    ax.legend()
    return png_of(picture)


main = stage("memorisation", Config, compute, __doc__)

if __name__ == "__main__":
    main()
