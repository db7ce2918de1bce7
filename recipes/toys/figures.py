"""Figures of the toys: points, densities and vector fields over time; at all times, points have unit variance."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm import gif
from ldm.diffusion import Denoiser, ItoSDE
from ldm.lazy import Tensor, torch
from stages.runner import new_figure, png_of

Path = NDArray[np.float64]  # (frames, n, d): points over time, from noise to data
PANELS, EDGE, BINS = 6, 3.0, np.linspace(-3, 3, 121).tolist()


def process(path: Path, t: NDArray[np.float64], title: str) -> bytes:
    """PNG: the points at a few times."""
    figure, (axes,) = _panels()
    for ax, i in zip(axes, _chosen(len(path)), strict=True):
        _points(ax, path[i], t[i])
    figure.suptitle(title)
    return png_of(figure)


def densities(forward: Path, reverse: Path, t: NDArray[np.float64]) -> bytes:
    """PNG: at a few levels, the density of the first coordinate, forward (filled) and reverse (line)."""
    figure, (axes,) = _panels()
    for ax, i in zip(axes, _chosen(len(forward)), strict=True):
        ax.hist(forward[i, :, 0], BINS, density=True, alpha=0.4)
        ax.hist(reverse[i, :, 0], BINS, density=True, histtype="step")
        ax.set(title=f"t = {t[i]:.2g}", yticks=[])
    figure.suptitle("density of the first coordinate: forward (filled), reverse (line)")
    return png_of(figure)


def fields(denoiser: Denoiser, sigmas: Tensor, dimensions: int) -> bytes:
    """PNG: the learnt score, times σ̄² / √(1 + σ̄²), at a few levels; for an SDE, also the drift of the reverse SDE.

    Fields are drawn as arrows in the plane, and as a curve on the line.
    """
    schedule = denoiser.schedule
    rows = 2 if isinstance(schedule, ItoSDE) else 1
    figure, axes = _panels(rows)
    side = torch.linspace(-2, 2, 17 if dimensions > 1 else 200, dtype=torch.float64)
    grid = torch.cartesian_prod(*[side] * dimensions).view(-1, dimensions, 1, 1)
    for column, sigma in enumerate(sigmas[_chosen(len(sigmas))]):
        scale = (1 + sigma**2).sqrt() if sigma.isfinite() else torch.ones(())
        with torch.no_grad():
            scaled = (denoiser(scale * grid, sigma) - scale * grid) / scale if sigma.isfinite() else -grid
        _field(axes[0][column], grid, scaled)
        axes[0][column].set(title=f"σ̄ = {sigma:.2g}")
        if isinstance(schedule, ItoSDE):
            level = schedule.at_sigma(sigma).expand(grid)
            unit = (level.alpha_t**2 + level.sigma_t**2).sqrt()[0]  # x_t = unit · grid
            score = scaled * unit / (level.sigma_t[0] ** 2)
            _field(axes[1][column], grid, -schedule.reverse_drift(unit * grid, level.t, score) / unit)
    below = "; below, the drift of the reverse SDE, back in time" if rows > 1 else ""
    figure.suptitle(f"learnt score, times σ̄² / √(1 + σ̄²){below}")
    return png_of(figure)


def animation(path: Path, t: NDArray[np.float64], frames: int = 25) -> bytes:
    """GIF: the points over time."""
    pictures = []
    for i in np.unique(np.linspace(0, len(path) - 1, frames).round().astype(int)):
        ax = new_figure(2.4, 2.4).add_subplot(xlim=(-EDGE, EDGE))
        _points(ax, path[i], t[i])
        pictures.append(np.asarray(Image.open(io.BytesIO(png_of(ax.figure))))[..., :3])
    return gif(pictures, 80, hold=2000, scale=1)


def _field(ax: Any, grid: Tensor, field: Tensor) -> None:
    at, vectors = grid.flatten(1).numpy(), field.flatten(1).numpy()
    if at.shape[1] > 1:
        lengths = np.linalg.norm(vectors, axis=1)
        ax.quiver(at[:, 0], at[:, 1], vectors[:, 0], vectors[:, 1], lengths, angles="xy", width=0.008)
    else:
        ax.plot(at, vectors)
        ax.axhline(0, color="0.8", zorder=0)
    ax.set(xlim=(-2.2, 2.2))


def _points(ax: Any, x: NDArray[np.float64], t: float) -> None:
    if x.shape[1] > 1:
        ax.scatter(x[:, 0], x[:, 1], s=1, linewidths=0)
        ax.set(ylim=(-EDGE, EDGE))
    else:
        ax.hist(x[:, 0], BINS, density=True)
        ax.set(yticks=[])
    ax.set_title(f"t = {t:.2g}")


def _chosen(count: int) -> list[int]:
    return np.linspace(0, count - 1, PANELS).round().astype(int).tolist()


def _panels(rows: int = 1) -> tuple[Any, Any]:
    """A figure, and its axes as (rows, PANELS)."""
    figure = new_figure(2 * PANELS, 0.4 + 2.2 * rows)
    axes = figure.subplots(rows, PANELS, sharex=True, squeeze=False)
    for ax in axes.flat:
        ax.set(xlim=(-EDGE, EDGE))
    return figure, axes
