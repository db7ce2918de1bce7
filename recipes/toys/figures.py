"""Figures of the toys: points, densities and score fields over time, all scaled to unit variance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ldm.pictures import gif
from stages.figures import png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from ldm.denoiser import Denoiser

Path = NDArray[np.float64]  # (frames, n, d): points over time, from noise to data
PANELS, EDGE, BINS = 6, 3.0, np.linspace(-3, 3, 121).tolist()


def process(path: Path, t: NDArray[np.float64], title: str) -> bytes:
    """PNG: the points at a few times."""
    figure, axes = _panels()
    for ax, i in zip(axes, _chosen(len(path)), strict=True):
        _points(ax, path[i], t[i])
    figure.suptitle(title)
    return png_of(figure)


def densities(forward: Path, reverse: Path, t: NDArray[np.float64]) -> bytes:
    """PNG: at a few levels, the density of the first coordinate in the forward process (filled) and in the reverse one (line)."""
    figure, axes = _panels()
    for ax, i in zip(axes, _chosen(len(forward)), strict=True):
        ax.hist(forward[i, :, 0], BINS, density=True, alpha=0.4)
        ax.hist(reverse[i, :, 0], BINS, density=True, histtype="step")
        ax.set(title=f"t = {t[i]:.2g}", yticks=[])
    figure.suptitle("density of the first coordinate: forward (filled), reverse (line)")
    return png_of(figure)


@torch.no_grad()
def score_field(denoiser: Denoiser, sigmas: Tensor, dimensions: int) -> bytes:
    """PNG: the learnt score at a few levels, times the noise's deviation; arrows in the plane, a curve on the line."""
    figure, axes = _panels()
    side = torch.linspace(-2, 2, 17 if dimensions > 1 else 200, dtype=torch.float64)
    grid = torch.cartesian_prod(*[side] * dimensions).view(-1, dimensions, 1, 1)
    for ax, i in zip(axes, _chosen(len(sigmas)), strict=True):
        sigma = sigmas[i]
        scale = (1 + sigma**2).sqrt() if sigma.isfinite() else torch.ones(())
        x = scale * grid
        field = ((denoiser(x, sigma) - x) / scale if sigma.isfinite() else -grid).flatten(1).numpy()
        at = grid.flatten(1).numpy()
        if dimensions > 1:
            ax.quiver(at[:, 0], at[:, 1], field[:, 0], field[:, 1], np.linalg.norm(field, axis=1), angles="xy", width=0.008)
        else:
            ax.plot(at, field)
            ax.axhline(0, color="0.8", zorder=0)
        ax.set(title=f"σ̄ = {sigma:.2g}", xlim=(-2.2, 2.2))
    figure.suptitle("learnt score, times σ̄² / √(1 + σ̄²)")
    return png_of(figure)


def animation(path: Path, t: NDArray[np.float64], frames: int = 25) -> bytes:
    """GIF: the points over time."""
    pictures = []
    for i in np.unique(np.linspace(0, len(path) - 1, frames).round().astype(int)):
        figure = Figure(figsize=(2.4, 2.4), layout="constrained")
        canvas, ax = FigureCanvasAgg(figure), figure.add_subplot()
        ax.set(xlim=(-EDGE, EDGE))
        _points(ax, path[i], t[i])
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3])
    return gif(pictures, 80, hold=2000, scale=1)


def _points(ax: Axes, x: NDArray[np.float64], t: float) -> None:
    if x.shape[1] > 1:
        ax.scatter(x[:, 0], x[:, 1], s=1, linewidths=0)
        ax.set(ylim=(-EDGE, EDGE))
    else:
        ax.hist(x[:, 0], BINS, density=True)
        ax.set(yticks=[])
    ax.set_title(f"t = {t:.2g}")


def _chosen(count: int) -> list[int]:
    return np.linspace(0, count - 1, PANELS).round().astype(int).tolist()


def _panels() -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(2 * PANELS, 2.6), layout="constrained")
    axes = figure.subplots(1, PANELS, sharex=True)
    for ax in axes:
        ax.set(xlim=(-EDGE, EDGE))
    return figure, list(axes)
