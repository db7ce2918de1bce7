"""Print noise schedules over time, and warn where sampling from pure noise would be wrong.

\b
python -m tools.show_schedule                                   the schedule that params.yaml chooses
python -m tools.show_schedule cosine linear --out schedules.png these, with their options in params.yaml, and a figure
"""

from pathlib import Path

import click

from ldm import InputError, write_atomic
from ldm.diffusion import Schedule, schedules
from ldm.lazy import torch
from stages.runner import PARAMS, new_figure, png_of, read_section, run_command, warn

SECTION = "train_diffusion"


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--params", type=Path, default=PARAMS, show_default=True, help="Parameter file.")
@click.option("--section", default=SECTION, show_default=True, help="Section with a schedule.")
@click.option("--out", type=Path, help="PNG file to draw the schedules into.")
def command(names: tuple[str, ...], params: Path, section: str, out: Path | None) -> None:
    values = read_section(params, section)
    values = values.get(SECTION, values)  # the section of a toy holds that of the training
    if not isinstance(values, dict) or not isinstance(values.get("schedule"), str):
        raise InputError(f"{params}: the section {section!r} has no schedule; choose that of a training: {SECTION}")
    options = values.get("schedules") or {}
    if not isinstance(options, dict):
        raise InputError(f"{params}: {section}.schedules: {options!r} will not do; write the options by schedule")
    if out and out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: name a .png file")
    chosen = {name: schedules.build(name, options.get(name)) for name in names or [values["schedule"]]}
    for name, schedule in chosen.items():
        show(name, schedule)
    if out:
        write_atomic(out, figure(chosen))


def show(name: str, schedule: Schedule) -> None:
    """Print alpha_t, sigma_t and the signal-to-noise ratio of a schedule at five times."""
    level = schedule.at(torch.tensor([1e-3, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    print(f"{name}\n{'t':>8} {'alpha_t':>12} {'sigma_t':>12} {'SNR':>12}")
    for t, alpha_t, sigma_t, snr in zip(*level, (level.alpha_t / level.sigma_t) ** 2, strict=True):
        print(f"{t:8.4g} {alpha_t:12.6g} {sigma_t:12.6g} {snr:12.6g}")
    print(f"terminal SNR {schedule.terminal_snr():.4g}")
    warn("show_schedule", schedule.wrong_start())


def figure(chosen: dict[str, Schedule]) -> bytes:
    """PNG: the share of signal α² and the log signal-to-noise ratio of each schedule, over time."""
    picture = new_figure(9, 3)
    signal, ratio = picture.subplots(1, 2)
    t = torch.linspace(1e-3, 1, 1000, dtype=torch.float64)
    for name, schedule in chosen.items():
        signal.plot(t, schedule.alpha_t(t) ** 2, label=name)
        ratio.plot(t, 2 * schedule.half_log_snr(t))
    signal.set(xlabel="t", ylabel="α² (in a chain, the product of 1 − β)")
    ratio.set(xlabel="t", ylabel="log SNR", ylim=(-15, 15))
    signal.legend()
    return png_of(picture)


if __name__ == "__main__":
    run_command(command, "show_schedule")
