"""Draw noise schedules side by side: how much signal is left over time."""

from __future__ import annotations

from pydantic import Field, model_validator

from ldm import choices
from ldm.config import OptionTable, Section, parse_options
from stages.cli import Job, stage


class Config(Section):
    """Which schedules."""

    schedules: OptionTable = Field(description="the schedules, with their options")

    @model_validator(mode="after")
    def _options_are_valid(self) -> Config:
        for name, options in self.schedules.items():
            parse_options("schedules", name, options)
        return self


def run(job: Job[Config]) -> None:
    import torch
    from matplotlib.figure import Figure

    from stages.figures import png_of

    picture = Figure(figsize=(9, 3), layout="constrained")
    signal, ratio = picture.subplots(1, 2)
    t = torch.linspace(1e-3, 1, 1000, dtype=torch.float64)
    for name, options in job.config.schedules.items():
        schedule = choices.build("schedules", name, options)
        signal.plot(t, schedule.alpha(t) ** 2, label=name)
        ratio.plot(t, 2 * schedule.half_log_snr(t))
    signal.set(xlabel="t", ylabel="α² (in a chain, the product of 1 − β)")
    ratio.set(xlabel="t", ylabel="log SNR", ylim=(-15, 15))
    signal.legend()
    job.write("schedules.png", png_of(picture))


main = stage("draw_schedules", Config, run, __doc__)

if __name__ == "__main__":
    main()
