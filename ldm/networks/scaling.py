"""Autoencoders that scale: the latents of a picture in two sizes are two sizes of the same latents.

Nothing else in the training of an autoencoder asks for that, and latents without it take a denoiser longer to learn.
Kouzelis et al. 2025, arXiv:2502.09509 (EQ-VAE), with scalings alone.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ldm.errors import InputError
from ldm.networks.autoencoder import LIKELIHOODS, Autoencoder


def heights(positions: range, share: float, grid: int, device: Any = "cpu") -> dict[int, Tensor]:
    """Which images of a batch have their latents scaled to which height: height → indices into `positions`.

    A share of the images, spread evenly over the batch, has each height from grid // 2 + 1 to grid - 1 in turn; the
    others keep that of the grid. It depends on the position in the batch alone, of which a process may have a part:
    positions. Raises: InputError for a grid that has no such height.
    """
    smaller = range(grid // 2 + 1, grid)
    if not smaller:
        problem = f"scaled {share:g}: latents of {grid} places a side cannot be made smaller"
        raise InputError(f"{problem}; set scaled to 0, or take a smaller patch")
    of_height: dict[int, list[int]] = {}
    for index, position in enumerate(positions):
        before, after = math.floor(share * position), math.floor(share * (position + 1))
        of_height.setdefault(smaller[before % len(smaller)] if after > before else grid, []).append(index)
    return {height: torch.tensor(indices, device=device) for height, indices in of_height.items()}


def scaled_vae_loss(
    vae: Autoencoder,
    x: Tensor,
    eps: Tensor,
    heights: Mapping[int, Tensor],
    kl_weight: float,
    likelihood: str = "bernoulli",
) -> Tensor:
    """As `vae_loss`, where draws of the latents are decoded in other sizes, and compared with the image of that size.

    heights: a height in places of the grid → indices into the batch, of the latents that are brought to this height,
    as the function `heights` gives them. The likelihood is taken times the ratio of the areas, so that a small image
    counts as much as a whole one. x: (B, C, H, W) in [0, 1]; eps: (B, c, h, w). Returns (B,).
    """
    posterior = vae.encode(x)
    padding: Any = vae.padding
    z, images = posterior.draw(eps), nnf.pad(x, padding, "replicate")
    loss = kl_weight * posterior.kl_divergence().flatten(1).sum(1)
    for height, index in heights.items():
        width = round(z.shape[-1] * height / z.shape[-2])
        decoded = vae.decode(resized(z.index_select(0, index), height, width))
        image = resized(images[index], *decoded.shape[-2:]) if height < z.shape[-2] else x[index]
        areas = math.prod(x.shape[-2:]) / math.prod(image.shape[-2:])
        loss = loss.index_add(0, index, areas * LIKELIHOODS[likelihood](decoded, image).to(loss.dtype))
    return loss


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation with antialiasing, (B, C, H, W) → (B, C, height, width) in float32.

    As two products of matrices, whose gradient is the same each time on every device.
    """
    rows, columns = (
        nnf.interpolate(torch.eye(own, device=x.device)[None, None], (new, own), mode="bilinear", antialias=True)[0, 0]
        for own, new in zip(x.shape[-2:], (height, width), strict=True)
    )
    with torch.autocast(x.device.type, enabled=False):
        return rows @ x.float() @ columns.mT
