"""Repeat the training of the diffusion model, or the sampling alone, over seeds, and report mean and deviation.

    python -m stages.repeat --seeds 1,2,3 --out tmp/seeds             train, sample, decode and evaluate, for each seed
    python -m stages.repeat --from sample --seeds 1,2,3 --out tmp/s   sample the trained model anew

Each seed has its folder under --out; a seed whose row is there, from the same parameters, code and artifacts, is not
run again. What is the same for all seeds is read from the tracked artifacts.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
from pathlib import Path

import click

from ldm.errors import InputError
from stages.cli import DAG, PARAMS, check_writable, read_yaml, run_command
from stages.dag import ROOT

CHAIN = ["train_diffusion", "sample", "decode", "evaluate"]


def run_seed(seed: int, first: str, out: Path) -> None:
    """The stages from `first` on, each reading what the one before wrote into the same folder. Raises: InputError where one fails."""
    dag = read_yaml(DAG)["stages"]
    made: dict[str, Path] = {}
    for name in CHAIN[CHAIN.index(first) :]:
        inputs = [Path(d).stem for d in dag[name]["deps"] if not d.endswith(".py")]
        sources = [arg for kind in inputs if kind in made for arg in ("--in", f"{kind}={made[kind]}")]
        settings = ["--set", f"seed={seed}"] if name == first else []
        stage = subprocess.Popen([sys.executable, "-m", f"stages.{name}", *settings, *sources, "--out", str(out)])
        try:
            code = stage.wait()
        except KeyboardInterrupt:  # the stage has it too, and keeps its state first
            code = stage.wait()
        if code:
            raise InputError(f"seed {seed}: {name} failed (exit code {code}); its message is above")
        made |= {path.stem: path for path in out.glob("*.safetensors")}


def key_of(first: str) -> str:
    """A hash over all that the seeds have in common: parameters, code, and the tracked artifacts that are read."""
    entries = [read_yaml(DAG)["stages"][name] for name in CHAIN[CHAIN.index(first) :]]
    made = {next(iter(out)) if isinstance(out, dict) else out for entry in entries for out in entry["outs"]}
    read = {Path(dep) for entry in entries for dep in entry["deps"] if not dep.endswith(".py") and dep not in made}
    code = {path for folder in ("ldm", "stages") for path in (ROOT / folder).rglob("*.py")}
    digests = [(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(read | code | {PARAMS, DAG}) if path.is_file()]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def summary(rows: dict[int, dict[str, float]]) -> dict[str, object]:
    """Mean, deviation and single values of every measure; the deviation is that of one seed (n − 1)."""
    keys = [key for key, value in next(iter(rows.values())).items() if isinstance(value, float)]
    values = {key: [row[key] for row in rows.values()] for key in keys}
    measures = {key: {"mean": statistics.mean(v), "std": statistics.stdev(v), "values": v} for key, v in values.items()}
    return {"seeds": list(rows), **{key: next(iter(rows.values()))[key] for key in ("data", "n")}, **measures}


@click.command(help=__doc__)
@click.option("--from", "first", type=click.Choice(CHAIN[:2]), default=CHAIN[0], show_default=True, help="The stage that takes the seed.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Two or more, with commas.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs and of summary.json.")
def command(first: str, seeds: str, out: Path) -> None:
    from ldm.artifacts import write_atomic  # brings torch

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
        done = folder / "key.txt"
        if not done.exists() or done.read_text("utf-8") != key:
            run_seed(seed, first, folder)
            write_atomic(done, key.encode())
        rows[seed] = json.loads((folder / "diffusion.json").read_text("utf-8"))
    found = summary(rows)
    write_atomic(out / "summary.json", json.dumps(found, indent=1).encode())
    print(f"{found['data']}, n = {found['n']}, seeds {seeds} of {first}")
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{key:>22} {value['mean']:.4g} ± {value['std']:.2g}")


if __name__ == "__main__":
    run_command(command, "repeat")
