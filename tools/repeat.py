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
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from ldm import InputError, Interrupted, write_atomic
from ldm.lazy import torch
from stages.runner import DAG, PARAMS, ROOT, check_writable, pick_device, read_yaml, run_command, with_settings
from stages.runner.checkpoints import device_kind, digest_of, digests_of_code
from stages.runner.run import Files, files_of
from tools.check import check_together, stage_config

TRAINING, SAMPLING = ["train_diffusion"], ["sample", "decode", "evaluate"]
OWN = ("train_diffusion.seed", "sample.seed", "evaluate.row")  # parameters
SHARES = ("agree", "agree_second", "precision", "recall", "coverage", "label_tv")  # measures that are at most 1
pick_once = cache(pick_device)  # of a GPU that cannot be used, it warns


class Repetition(NamedTuple):
    """Runs of stages with different seeds into folders of their own, where each is kept as long as its key holds."""

    out: Path
    settings: tuple[str, ...]

    def once(self, names: list[str], seed: int, folder: Path, artifacts: Files, before: str) -> Files:
        """Run stages, of which the first takes the seed, where the folder has no result of this key yet.

        artifacts: those to read instead of the tracked ones, kind → path; before: the key of these. Returns them with
        the new ones. Raises: InputError where a stage fails.
        """
        own = [text for text in self.settings if text.split(".")[0] in names]
        record, key = folder / "key.txt", f"{key_of(names)} {' '.join(own)} {before}".strip()
        if not record.exists() or record.read_text("utf-8") != key:
            record.unlink(missing_ok=True)
            started = time.monotonic() - seconds_of(folder).get(key, 0.0)  # what was interrupted is resumed
            try:
                self.run_stages(names, seed, folder, artifacts)
            finally:
                write_atomic(folder / "seconds.json", json.dumps({key: time.monotonic() - started}).encode())
            write_atomic(record, key.encode())
        return artifacts | {path.stem: path for path in folder.glob("*.safetensors")}

    def run_stages(self, names: list[str], seed: int, out: Path, artifacts: Files) -> None:
        settings = [*self.settings, f"{names[0]}.seed={seed}", "evaluate.row=diffusion"]
        for name in names:
            words = [f"--in={kind}={artifacts[kind]}" for kind in files_of(name, Path())[0] if kind in artifacts]
            words += [f"--set={text.removeprefix(f'{name}.')}" for text in settings if text.startswith(f"{name}.")]
            stage = subprocess.Popen([sys.executable, "-m", f"stages.{name}", *words, f"--out={out}"])
            try:
                stage.wait()
            except Interrupted:  # Ctrl-C is sent to the stage too
                stage.terminate()
                raise
            finally:
                code = stage.wait()  # until it has kept its state
            if code:
                raise InputError(f"seed {seed}: {name} failed (exit code {code}); its message is above")
            artifacts = artifacts | {path.stem: path for path in out.glob("*.safetensors")}

    def sampled(self, seeds: list[int], folder: Path, artifacts: Files, before: str) -> Iterator[dict[str, Any]]:
        """The measures of a model's samples, by seed."""
        for seed in seeds:
            self.once(SAMPLING, seed, folder / f"sample-{seed}", artifacts, before)
            yield json.loads((folder / f"sample-{seed}/measures.json").read_text("utf-8"))["diffusion"]

    def trained(self, seed: int, samplings: list[int]) -> list[dict[str, Any]]:
        """The measures of a model trained with this seed, by sampling seed."""
        folder = self.out / f"train-{seed}"
        artifacts = self.once(TRAINING, seed, folder, {}, "")
        return list(self.sampled(samplings, folder, artifacts, (folder / "key.txt").read_text("utf-8") + f" {seed}"))


def key_of(stages: list[str]) -> str:
    """A hash over all that the seeds have in common: parameters, code, machine, and the tracked artifacts read."""
    files = [files_of(name, Path()) for name in stages]
    outputs = {path for _, outs in files for path in outs.values()}
    read = {path for inputs, _ in files for path in inputs.values()} - outputs
    digests = {str(path): digest_of(path) for path in sorted(read | {PARAMS, DAG}) if path.is_file()}
    digests |= digests_of_code(ROOT)
    return hashlib.sha256(json.dumps([digests, torch.__version__, device_kind(pick_once("auto"))]).encode()).hexdigest()


def seconds_of(folder: Path) -> dict[str, float]:
    """How long the runs in a folder have taken so far, by their key; empty before the first of them."""
    path = folder / "seconds.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def summary(rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Each measure's values over trainings and samplings, with their mean, their deviations and an interval.

    Every training is sampled with the same seeds, so the deviations are those of a two-way table with one value a cell.
    training_std and sampling_std are of one seed, and None of a source with one seed only; real_std is of the finite
    held-out images, where the measure has one. low and high are the mean ∓ 1.96 times the root of the sum of their
    squares, within what the measure can be: with few seeds, a rough interval for a single run. A measure that is null
    in some of the runs has its values alone.
    """
    result: dict[str, Any] = {}
    every = [row for samplings in rows for row in samplings]
    for key in every[0]:
        kinds = {type(row[key]) for row in every}
        if key.endswith("_std") or float not in kinds:
            continue
        table = [[row[key] for row in samplings] for samplings in rows]
        if len(kinds) > 1:
            result[key] = {"mean": None, "values": table}
            continue
        values = np.array(table)
        training, sampling = variances(values)
        real = float(np.mean([row.get(f"{key}_real_std") or 0.0 for row in every])) ** 2
        reach = 1.96 * math.sqrt((training or 0) + (sampling or 0) + real)  # holds 95 % of a normal distribution
        stds = {"training_std": training, "sampling_std": sampling, "real_std": real or None}
        deviations = {name: None if variance is None else math.sqrt(variance) for name, variance in stds.items()}
        mean = float(values.mean())
        low, high = max(mean - reach, 0), min(mean + reach, 1 if key in SHARES else math.inf)
        result[key] = {"mean": mean, **deviations, "low": low, "high": high, "values": table}
    return result


def variances(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The variance of one training seed, and of one sampling seed of a given training.

    values: (trainings, samplings). A sampling's is that of its noise, which all trainings share, and that of the two
    together (the residual).
    """
    trainings, samplings = values.shape
    if 1 in values.shape:
        alone = float(values.var(ddof=1))
        return (None, alone) if trainings == 1 else (alone, None)
    by_training, by_sampling = values.mean(1), values.mean(0)
    residual = values - by_training[:, None] - by_sampling + values.mean()
    both = (residual**2).sum() / ((trainings - 1) * (samplings - 1))
    training = max(by_training.var(ddof=1) - both / samplings, 0)
    noise = max(by_sampling.var(ddof=1) - both / trainings, 0)
    return float(training), float(noise + both)


def numbers(context: click.Context, option: click.Parameter, text: str | None) -> list[int]:
    """The seeds of an option. Raises: InputError."""
    words = text.split(",") if text else []
    if len({int(word) for word in words if re.fullmatch(r"\d{1,18}", word)}) < len(words):
        raise InputError(f"--{option.name} {text}: different numbers of at most 18 digits are wanted, such as 1,2,3")
    return [int(word) for word in words]


@click.command(help=__doc__)
@click.option("--train", callback=numbers, help="Seeds of the training, with commas; none: the trained model.")
@click.option("--sample", callback=numbers, required=True, help="Seeds of the sampling, with commas.")
@click.option("--set", "settings", multiple=True, metavar="STAGE.KEY=VALUE", help="Another parameter of a stage.")
@click.option("--out", type=Path, required=True, help="Folder of the runs and of summary.json.")
def command(train: list[int], sample: list[int], settings: tuple[str, ...], out: Path) -> None:
    if not sample or (len(train) < 2 and len(sample) < 2):
        raise InputError("one seed has no deviation; name at least two for --sample, or one there and two for --train")
    known = TRAINING + SAMPLING if train else SAMPLING
    for text in settings:
        if not re.fullmatch(rf"({'|'.join(known)})\..+=.*", text):
            raise InputError(f"--set {text}: STAGE.KEY=VALUE is wanted, of a stage that is run: {', '.join(known)}")
        if text.split("=")[0] in OWN:
            raise InputError(f"--set {text}: this command sets {', '.join(OWN)} itself; leave it out")
    values = with_settings(read_yaml(PARAMS), settings)
    configs = {name: stage_config(name).parse(values[name], name) for name in TRAINING + SAMPLING}
    check_together(configs, f"{PARAMS} and --set")
    check_writable(out)
    repetition = Repetition(out, settings)
    rows = [repetition.trained(seed, sample) for seed in train] or [list(repetition.sampled(sample, out, {}, ""))]
    about = {key: rows[0][0][key] for key in ("data", "n")} | {"train": train, "sample": sample, "set": settings}
    seconds = [round(sum(seconds_of(out / f"train-{seed}").values())) for seed in train]
    named = [name for name in values if name in ("train_vae", *known)]  # the autoencoder is the trained one
    chosen = {name: {key: x for key, x in values[name].items() if f"{name}.{key}" not in OWN} for name in named}
    about |= {"parameters": chosen} | ({"training_seconds": seconds} if train else {})
    measures = summary(rows)
    write_atomic(out / "summary.json", json.dumps(about | measures, indent=1).encode())
    print(f"{about['data']}, n = {about['n']}, sampling seeds {sample}, training seeds {train or 'as committed'}")
    for name, value in measures.items():
        if value["mean"] is None:
            print(f"{name:>15} –, since it is null in some of the runs")
        else:
            sources = {word: value[f"{word}_std"] for word in ("training", "sampling", "real")}
            said = " ".join(f"± {std:.2g} ({word})" for word, std in sources.items() if std is not None)
            print(f"{name:>15} {value['mean']:.4g} {said}, {value['low']:.4g} to {value['high']:.4g}")


if __name__ == "__main__":
    run_command(command, "repeat")
