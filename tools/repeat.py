"""Repeat the training of the diffusion model, or its sampling alone, over seeds: mean and deviation of each source.

\b
python -m tools.repeat --train 1,2,3 --sample 101,102,103 --out tmp/seeds   each of three trainings sampled three times
python -m tools.repeat --sample 101,102,103 --out tmp/draws                 the trained model sampled anew
python -m tools.repeat --sample 1,2 --set sample.steps=8 --set evaluate.final=false --out tmp/eight     to make a choice

Each seed has its folder under --out; a seed whose result is there, from the same parameters, code and artifacts, is
not run again. What is the same for all seeds is read from the tracked artifacts.
"""

import hashlib
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click

from ldm import InputError, write_atomic
from ldm.lazy import torch
from stages.runner import DAG, PARAMS, ROOT, check_writable, cpu_kind, files_of, run_command

TRAINING, SAMPLING = ["train_diffusion"], ["sample", "decode", "evaluate"]
NORMAL = 1.96  # standard deviations, on either side of the mean, that hold 95 % of a normal distribution


def run_stages(
    names: list[str], seed: int, out: Path, made: dict[str, Path], settings: tuple[str, ...]
) -> dict[str, Path]:
    """Run stages, of which the first takes the seed, into a folder; returns what is made so far, kind → path.

    made: artifacts that the stages read instead of the tracked ones. settings: as stage.key=value. Raises: InputError
    where a stage fails.
    """
    for name in names:
        inputs, _ = files_of(name, Path(), (), None)
        sources = [word for kind in inputs if kind in made for word in ("--in", f"{kind}={made[kind]}")]
        own = [text.removeprefix(f"{name}.") for text in settings if text.startswith(f"{name}.")]
        own += [f"seed={seed}"] if name == names[0] else ["row=diffusion"] if name == "evaluate" else []
        words = [*sources, *(word for text in own for word in ("--set", text)), "--out", str(out)]
        stage = subprocess.Popen([sys.executable, "-m", f"stages.{name}", *words])
        try:
            code = stage.wait()
        except KeyboardInterrupt:  # the stage has it too, and keeps its state first
            code = stage.wait()
        if code:
            raise InputError(f"seed {seed}: {name} failed (exit code {code}); its message is above")
        made = made | {path.stem: path for path in out.glob("*.safetensors")}
    return made


class Repetition(NamedTuple):
    """Runs of stages with different seeds into folders of their own, where each is kept as long as its key holds."""

    out: Path
    settings: tuple[str, ...]

    def once(self, names: list[str], seed: int, folder: Path, made: dict[str, Path], before: str) -> dict[str, Path]:
        """As `run_stages`, where the folder has no result of this key yet. before: the key of what is made."""
        record, key = folder / "key.txt", f"{key_of(names)} {' '.join(self.settings)} {before}".strip()
        if record.exists() and record.read_text("utf-8") == key:
            return made | {path.stem: path for path in folder.glob("*.safetensors")}
        made = run_stages(names, seed, folder, made, self.settings)
        write_atomic(record, key.encode())
        return made

    def sampled(self, seeds: list[int], folder: Path, made: dict[str, Path], before: str = "") -> list[dict[str, Any]]:
        """The measures of a model's samples, by seed."""
        rows = []
        for seed in seeds:
            self.once(SAMPLING, seed, folder / f"sample-{seed}", made, before)
            text = (folder / f"sample-{seed}/measures.json").read_text("utf-8")
            rows.append(json.loads(text)["diffusion"])
        return rows

    def trained(self, seed: int, samplings: list[int]) -> list[dict[str, Any]]:
        """The measures of a model trained with this seed, by sampling seed."""
        folder = self.out / f"train-{seed}"
        made = self.once(TRAINING, seed, folder, {}, "")
        return self.sampled(samplings, folder, made, (folder / "key.txt").read_text("utf-8") + f" {seed}")


def key_of(stages: list[str]) -> str:
    """A hash over all that the seeds have in common: parameters, code, machine, and the tracked artifacts read."""
    files = [files_of(name, Path(), (), None) for name in stages]
    outputs = {path for _, outs in files for path in outs.values()}
    read = {path for inputs, _ in files for path in inputs.values()} - outputs
    code = {path for folder in ("ldm", "stages") for path in (ROOT / folder).rglob("*.py")}
    used = [path for path in sorted(read | code | {PARAMS, DAG}) if path.is_file()]
    digests = [(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in used]
    return hashlib.sha256(json.dumps([digests, torch.__version__, cpu_kind()]).encode()).hexdigest()


def summary(rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """What is said of every measure, of rows by training and sampling: values, mean, deviations, and an interval.

    training_std and sampling_std are those of one seed; the first, from the trainings' means, is free of the second.
    The interval holds 95 % of single runs, if normal: the variance of the finite sets is added to those of the seeds.
    """
    result: dict[str, Any] = {}
    for key in [key for key, value in rows[0][0].items() if isinstance(value, float) and not key.endswith("_std")]:
        values = [[row[key] for row in samplings] for samplings in rows]
        means = [statistics.mean(samplings) for samplings in values]
        several = [statistics.variance(samplings) for samplings in values if len(samplings) > 1]
        sampling = statistics.mean(several) if several else 0.0
        between = statistics.variance(means) - sampling / len(values[0]) if len(means) > 1 else 0.0
        training, sets = max(between, 0.0), rows[0][0].get(f"{key}_std", 0.0)
        mean, reach = statistics.mean(means), NORMAL * math.sqrt(training + sampling + sets**2)
        deviations = {"training_std": math.sqrt(training), "sampling_std": math.sqrt(sampling)}
        result[key] = {"mean": mean, **deviations, "low": mean - reach, "high": mean + reach, "values": values}
    return result


def numbers(context: click.Context, option: click.Parameter, text: str | None) -> list[int]:
    """The seeds of an option. Raises: InputError."""
    try:
        seeds = [int(word) for word in text.split(",")] if text else []
    except ValueError:
        raise InputError(f"--{option.name} {text}: whole numbers with commas are wanted, such as 1,2,3") from None
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--{option.name} {text}: a seed is named twice; name different ones")
    return seeds


@click.command(help=__doc__)
@click.option("--train", callback=numbers, help="Seeds of the training, with commas; none: the trained model.")
@click.option("--sample", callback=numbers, required=True, help="Seeds of the sampling, with commas.")
@click.option("--set", "settings", multiple=True, metavar="STAGE.KEY=VALUE", help="Another parameter of a stage.")
@click.option("--out", type=Path, required=True, help="Folder of the runs and of summary.json.")
def command(train: list[int], sample: list[int], settings: tuple[str, ...], out: Path) -> None:
    if len(train) < 2 and len(sample) < 2:
        raise InputError("one seed has no deviation; name two or more for --train or --sample")
    for text in settings:
        if text.partition(".")[0] not in TRAINING + SAMPLING:
            raise InputError(
                f"--set {text}: the stages repeated are {', '.join(TRAINING + SAMPLING)}; name one of them"
            )
    check_writable(out)
    repetition = Repetition(out, settings)
    rows = [repetition.trained(seed, sample) for seed in train] or [repetition.sampled(sample, out, {})]
    result = (
        {key: rows[0][0][key] for key in ("data", "n")}
        | {"train": train, "sample": sample, "set": settings}
        | summary(rows)
    )
    write_atomic(out / "summary.json", json.dumps(result, indent=1).encode())
    print(f"{result['data']}, n = {result['n']}, sampling seeds {sample}, training seeds {train or 'as committed'}")
    for name, value in result.items():
        if isinstance(value, dict):
            deviations = f"± {value['training_std']:.2g} (training) ± {value['sampling_std']:.2g} (sampling)"
            print(f"{name:>15} {value['mean']:.4g} {deviations}, 95 %: {value['low']:.4g} to {value['high']:.4g}")


if __name__ == "__main__":
    run_command(command, "repeat")
