"""Print the ends of the configured noise schedule, and warn where sampling from pure noise would be wrong.

python -m stages.show_schedule                       that of params.yaml
python -m stages.show_schedule --schedule cosine     another one, with its options there
"""

from __future__ import annotations

from pathlib import Path

import click

from ldm import choices
from ldm.errors import InputError
from stages.cli import PARAMS, read_section, run_command, warn

SECTION = "train_diffusion"


@click.command(help=__doc__)
@click.option("--params", type=click.Path(path_type=Path), default=PARAMS, show_default=True, help="Parameter file.")
@click.option("--section", default=SECTION, show_default=True, help="Its section.")
@click.option("--schedule", "name", help="Another schedule of that section.")
def command(params: Path, section: str, name: str | None) -> None:
    import torch

    values = read_section(params, section)
    values = values.get(SECTION, values)  # the section of a toy holds that of the training
    if not isinstance(values.get("schedules"), dict) or "schedule" not in values:
        raise InputError(f"{params}: the section {section!r} has no schedule; choose that of a training, such as {SECTION}")
    name = name or values["schedule"]
    if name not in values["schedules"]:
        raise InputError(f"{params}: schedules.{name}: no options are given; known here are {', '.join(values['schedules'])}")
    schedule = choices.build("schedules", name, values["schedules"][name])
    t = schedule.snap(torch.tensor([1e-3, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    print(f"{name}\n{'t':>8} {'alpha':>12} {'sigma':>12} {'SNR':>12}")
    for row in zip(t, schedule.alpha(t), schedule.sigma(t), (2 * schedule.half_log_snr(t)).exp(), strict=True):
        print(f"{row[0]:8.4g} " + " ".join(f"{value:12.6g}" for value in row[1:]))
    print(f"terminal SNR {schedule.terminal_snr():.4g}")
    warn("show_schedule", schedule.wrong_start())


if __name__ == "__main__":
    run_command(command, "show_schedule")
