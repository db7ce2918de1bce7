"""Draw the points of the sweep, and write their table."""

from __future__ import annotations

import json
from typing import Any

from ldm.config import Section
from ldm.errors import InputError
from stages.cli import Job, stage


class Config(Section):
    """Nothing to set."""


def run(job: Job[Config]) -> None:
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted(job.inputs["points"].glob("*/point.json")):
        try:
            point = json.loads(path.read_text("utf-8"))
            found[point["sampler"], point["evaluations"]] = point  # two numbers of evaluations may allow for the same steps
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} is not a point of the sweep; remove it, and run 'dvc repro recipes/sweep/dvc.yaml'") from None
    if not found:
        raise InputError(f"{job.inputs['points']} holds no points; run 'dvc repro recipes/sweep/dvc.yaml'")
    points = [found[key] for key in sorted(found)]
    job.write("sweep.png", figure(points))
    job.write("table.md", markdown(points).encode())


def markdown(points: list[dict[str, Any]]) -> str:
    """One line a point."""
    lines = ["| sampler | steps | function evaluations | FID / floor | seconds per 10,000 images |", "|---|---|---|---|---|"]
    for p in points:
        ratio = f"{p['fid_over_floor']:.2f} ± {p['spread']:.2f}"
        lines.append(f"| {p['sampler']} | {p['steps']} | {p['evaluations']} | {ratio} | {p['seconds_per_10k']:.0f} |")
    return "\n".join(lines) + "\n"


def figure(points: list[dict[str, Any]]) -> bytes:
    """PNG: FID / floor over function evaluations, and over seconds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    from stages.figures import png_of

    picture = Figure(figsize=(9, 3.6), layout="constrained")
    axes = picture.subplots(1, 2, sharey=True)
    for ax, key, label in zip(axes, ("evaluations", "seconds_per_10k"), ("function evaluations", "seconds per 10,000 images"), strict=True):
        for sampler in sorted({p["sampler"] for p in points}):
            line = [p for p in points if p["sampler"] == sampler]
            ax.errorbar([p[key] for p in line], [p["fid_over_floor"] for p in line], [p["spread"] for p in line], marker=".", label=sampler)
        ax.set(xlabel=label, xscale="log", yscale="log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.grid(alpha=0.3)
    axes[0].set(ylabel="FID / floor")
    axes[0].legend()
    return png_of(picture)


main = stage("sweep_report", Config, run, __doc__)

if __name__ == "__main__":
    main()
