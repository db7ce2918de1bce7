"""Draw the points of the sweep, and write their table."""

import json
from typing import Any

import stages  # noqa: F401 - first, which looks whose ldm it is
from ldm import InputError, Section
from stages.runner import Run, new_figure, png_of, stage


class Config(Section):
    """The report has no parameters."""


def compute(run: Run[Config]) -> None:
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted(run.inputs["points"].glob("*/point.json")):
        try:
            point = json.loads(path.read_text("utf-8"))
            found[point["sampler"], point["evaluations"]] = point  # two budgets may allow for the same steps
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{path} is no point of the sweep; remove it, and run the sweep again") from None
    if not found:
        raise InputError(f"{run.inputs['points']} holds no points; run 'dvc repro recipes/sweep/dvc.yaml'")
    points = [found[key] for key in sorted(found)]
    run.write("table.md", markdown(points).encode())
    run.write("sweep.png", figure(points))  # the results first


def markdown(points: list[dict[str, Any]]) -> str:
    """One line per point."""
    lines = ["| sampler | steps | evaluations | FID / validation | seconds per 10,000 images |", "|---" * 5 + "|"]
    for p in points:
        ratio = f"{p['fid_val']:.2f} ± {p['fid_val_std']:.2f}"
        lines.append(f"| {p['sampler']} | {p['steps']} | {p['evaluations']} | {ratio} | {p['seconds_per_10k']:.0f} |")
    return "\n".join(lines) + "\n"


def figure(points: list[dict[str, Any]]) -> bytes:
    """PNG: FID / validation over function evaluations, and over seconds."""
    picture = new_figure(9, 3.6)
    axes = picture.subplots(1, 2, sharey=True)
    columns = {"evaluations": "function evaluations", "seconds_per_10k": "seconds per 10,000 images"}
    for ax, (key, label) in zip(axes, columns.items(), strict=True):
        for sampler in sorted({p["sampler"] for p in points}):
            line = [p for p in points if p["sampler"] == sampler]
            x, y, std = ([p[name] for p in line] for name in (key, "fid_val", "fid_val_std"))
            ax.errorbar(x, y, std, marker=".", label=sampler)
        ax.set(xlabel=label, xscale="log", yscale="log")
        ax.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
        ax.xaxis.set_minor_formatter("")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.3)
    axes[0].set(ylabel="FID / validation")
    axes[0].legend()
    return png_of(picture)


main = stage("sweep_report", Config, compute, __doc__, recipe="recipes/sweep")

if __name__ == "__main__":
    main()
