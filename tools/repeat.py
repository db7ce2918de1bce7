"""Repeat the training of the diffusion model, or the sampling alone, over seeds, and report mean and deviation.

\b
python -m tools.repeat --seeds 1,2,3 --out tmp/seeds             train, sample, decode and evaluate, for each seed
python -m tools.repeat --from sample --seeds 1,2,3 --out tmp/s   sample the trained model anew

Each seed has its folder under --out; a seed whose row is there, from the same parameters, code and artifacts, is not
run again. What is the same for all seeds is read from the tracked artifacts.
"""

import hashlib
import json
import statistics
import subprocess
import sys
from pathlib import Path

import click

from ldm import InputError, write_atomic
from ldm.lazy import torch
from stages.runner import DAG, PARAMS, ROOT, check_writable, cpu_kind, files_of, run_command

CHAIN = ["train_diffusion", "sample", "decode", "evaluate"]


def run_seed(seed: int, first: str, out: Path) -> None:
    """The stages from `first` on, each reading what the one before wrote into the same folder.

    Raises: InputError where one fails.
    """
    written: dict[str, Path] = {}
    for name in CHAIN[CHAIN.index(first) :]:
        inputs, _ = files_of(name, Path(), (), None)
        sources = [arg for kind in inputs if kind in written for arg in ("--in", f"{kind}={written[kind]}")]
        settings = ["--set", f"seed={seed}"] if name == first else []
        stage = subprocess.Popen([sys.executable, "-m", f"stages.{name}", *settings, *sources, "--out", str(out)])
        try:
            code = stage.wait()
        except KeyboardInterrupt:  # the stage has it too, and keeps its state first
            code = stage.wait()
        if code:
            raise InputError(f"seed {seed}: {name} failed (exit code {code}); its message is above")
        written |= {path.stem: path for path in out.glob("*.safetensors")}


def key_of(first: str) -> str:
    """A hash over all that the seeds have in common: parameters, code, machine, and the tracked artifacts read."""
    files = [files_of(name, Path(), (), None) for name in CHAIN[CHAIN.index(first) :]]
    outputs = {path for _, outs in files for path in outs.values()}
    read = {path for inputs, _ in files for path in inputs.values()} - outputs
    code = {path for folder in ("ldm", "stages") for path in (ROOT / folder).rglob("*.py")}
    used = [path for path in sorted(read | code | {PARAMS, DAG}) if path.is_file()]
    digests = [(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in used]
    return hashlib.sha256(json.dumps([digests, torch.__version__, cpu_kind()]).encode()).hexdigest()


def summary(rows: dict[int, dict[str, float]]) -> dict[str, object]:
    """Mean, deviation and single values of every measure; the deviation is that of one seed (n − 1)."""
    first = next(iter(rows.values()))
    values = {key: [row[key] for row in rows.values()] for key, value in first.items() if isinstance(value, float)}
    measures = {key: {"mean": statistics.mean(v), "std": statistics.stdev(v), "values": v} for key, v in values.items()}
    return {"seeds": list(rows), "data": first["data"], "n": first["n"], **measures}


@click.command(help=__doc__)
@click.option("--from", "first", type=click.Choice(CHAIN[:2]), default=CHAIN[0], help="The stage that takes the seed.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Two or more, with commas.")
@click.option("--out", type=Path, required=True, help="Folder of the runs and of summary.json.")
def command(first: str, seeds: str, out: Path) -> None:
    try:
        numbers = [int(s) for s in seeds.split(",")]
    except ValueError:
        raise InputError(f"--seeds {seeds}: whole numbers with commas are wanted, such as 0,1,2") from None
    if len(set(numbers)) < max(len(numbers), 2):
        raise InputError(f"--seeds {seeds}: at least two different seeds are wanted")
    check_writable(out)
    rows, key = {}, key_of(first)
    for seed in numbers:
        folder = out / f"{first}-{seed}"
        record = folder / "key.txt"
        if not record.exists() or record.read_text("utf-8") != key:
            run_seed(seed, first, folder)
            write_atomic(record, key.encode())
        rows[seed] = json.loads((folder / "diffusion.json").read_text("utf-8"))
    result = summary(rows)
    write_atomic(out / "summary.json", json.dumps(result, indent=1).encode())
    print(f"{result['data']}, n = {result['n']}, seeds {seeds} of {first}")
    for name, value in result.items():
        if isinstance(value, dict):
            print(f"{name:>22} {value['mean']:.4g} ± {value['std']:.2g}")


if __name__ == "__main__":
    run_command(command, "repeat")
