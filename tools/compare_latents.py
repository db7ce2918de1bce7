"""Compare autoencoders by what lies between their latents, in seconds, before a denoiser is trained on any of them.

\b
python -m stages.train_vae --set kl_weight=0.05 --out tmp/loose
python -m tools.compare_latents loose=tmp/loose/vae.safetensors --out tmp/latents.json

The file has, by autoencoder, FID / validation and the KL term in nats.
A denoiser leaves its samples between the latents of real images, where decoders differ more than in reconstructions.
So the latent of each validation image is averaged with that of its nearest neighbour, and what the decoder makes of
these midpoints is compared with the training images (after arXiv:2603.05630). Images reconstructed from the mean
latents, without the noise of a draw, stand beside them.
"""

import json
from pathlib import Path

import click

from ldm import InputError, artifacts, metrics, networks, write_atomic
from ldm.lazy import Tensor, torch
from ldm.precision import ieee_fp32
from stages.evaluate import labelled
from stages.runner import check_writable, files_of, limit_threads, pick_device, run_command


@click.command(help=__doc__)
@click.argument("vaes", nargs=-1, required=True, metavar="NAME=PATH...")
@click.option("--recipe", type=Path, default=Path(), help="Folder of the recipe whose images and classifier serve.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:i.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file of the results.")
@ieee_fp32()
def command(vaes: tuple[str, ...], recipe: Path, device: str, out: Path) -> None:
    named = dict(text.split("=", 1) for text in vaes if "=" in text)
    if len(named) < len(vaes):
        raise InputError(f"{' '.join(vaes)}: write NAME=PATH for each autoencoder, with different names")
    check_writable(out.parent)
    limit_threads()
    device, inputs = pick_device(device), files_of("train_vae", recipe)[0]
    images, features, artifact = (artifacts.load(inputs[kind], kind) for kind in ("images", "features", "classifier"))
    classifier, originals = networks.classifier.Classifier.from_artifact(artifact, device), images["validation_images"]
    train, validation = (labelled(features[split], images[f"{split}_labels"]) for split in ("train", "validation"))
    reference = metrics.frechet.Reference(train, validation, "validation images")

    def ratio(decoded: Tensor) -> float:
        return reference.ratio(networks.classifier.in_batches(classifier.features, decoded).cpu().numpy()).value

    result = {}
    for name, path in named.items():
        vae = artifacts.load(Path(path), "vae")
        artifacts.merge_lineage([images, features, artifact, vae])
        network = networks.autoencoder.from_artifact(vae, device)
        posterior = networks.autoencoder.encode_images(network, originals.to(device))
        values = {"reconstructions": ratio(networks.autoencoder.decode_images(network, posterior.mean))}
        values |= {"midpoints": ratio(networks.autoencoder.decode_images(network, midpoints(posterior)))}
        values |= {"kl": posterior.kl_divergence().double().sum().item() / len(originals)}
        result[name] = values | {"config": vae.config}
        print(f"{name}: FID / validation {values['reconstructions']:.3g}, of midpoints {values['midpoints']:.3g}")
    write_atomic(out, json.dumps(result, indent=1).encode())


def midpoints(posterior: networks.Posterior) -> Tensor:
    """The mean latents (n, c, h, w), each averaged with its nearest neighbour, by distance in standardised latents."""
    z = networks.Standardiser.fit(posterior).standardise(posterior.mean).flatten(1).float()
    nearest = torch.cdist(z, z).fill_diagonal_(torch.inf).argmin(1)
    return (posterior.mean + posterior.mean[nearest]) / 2


if __name__ == "__main__":
    run_command(command, "compare_latents")
