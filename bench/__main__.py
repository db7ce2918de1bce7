"""Time our training step and sampler beside diffusers, denoising-diffusion-pytorch and a plain loop.

Each of these is a side, and runs in a process of its own. The sides take turns for some rounds, so that a slow minute
of the machine hits all of them. The table has the median of the rounds, the smallest and the largest. Every side is
measured in fp32, and in bf16 where the machine has units for it: without them bf16 takes many times as long.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import Any

import click
from tqdm import tqdm

from ldm.artifacts import write_atomic
from ldm.errors import InputError
from ldm.lazy import torch
from ldm.precision import has_bf16
from stages.runner.command import pick_device, run_command

FLAGS = ("amx_bf16", "avx512_bf16")  # a CPU's units for bf16
HEADER = "| what | side | precision | images/s | least – most | ours over it | of the peak | MiB |"


@dataclass
class Worker:
    """The process of a side, and its figures so far.

    peer: the library whose network ours matches. values: what was measured (train, a sampler or peak) → a figure for
    each round, in images a second, or TFLOP/s for the peak. memory: the most that the process has used, in MiB.
    """

    name: str
    peer: str
    precision: str
    device: str
    batch_size: int
    values: dict[str, list[float]] = field(default_factory=dict)
    memory: float = 0.0

    def __post_init__(self) -> None:
        about = [self.name, self.peer, self.precision, self.device, str(self.batch_size)]
        command = [sys.executable, "-m", "bench.worker", *about]
        self.said = TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by stop)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True
        )

    def measure(self, what: str, **settings: Any) -> float:
        """Ask for a figure, and wait for it. Raises: InputError where the side has died."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"what": what, **settings}) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.process.wait()
            self.said.seek(0)
            last = (self.said.read().strip() or "it said nothing").splitlines()[-1]
            raise InputError(
                f"{self.name} in {self.precision} has died (exit code {self.process.returncode}): {last}"
            ) from None
        self.memory = answer.get("memory", 0.0)
        return answer["value"]

    def stop(self) -> None:
        with self.process, self.said:
            self.process.kill()

    def row(self, what: str, peer_cost: dict[str, int], peaks: dict[str, float]) -> dict[str, Any]:
        """A row of the results: what was measured, and images a second.

        share_of_peak: the operations of training over the matrix peak of the precision. A training step counts as three
        forward passes of the peer's network, for ours too.
        """
        speeds = self.values[what]
        row: dict[str, Any] = {"against": self.peer, "what": what, "side": self.name, "precision": self.precision}
        row |= {"images_per_second": median(speeds), "least": min(speeds), "most": max(speeds), "rounds": len(speeds)}
        row["memory_mib"] = round(self.memory)
        if what == "train":
            row["share_of_peak"] = 3 * peer_cost["flops"] * median(speeds) / (peaks[self.precision] * 1e12)
        return row


@click.command(help=__doc__)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:i.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Turns of every side.")
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=2.0, show_default=True, help="Length of a measurement."
)
@click.option(
    "--batch-size", type=click.IntRange(min=2), default=256, show_default=True, help="Latents in a training step."
)
@click.option("--n", type=click.IntRange(min=1), default=250, show_default=True, help="Samples drawn at once.")
@click.option(
    "--evaluations", type=click.IntRange(min=1), default=12, show_default=True, help="Function evaluations a sample."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the results; without it, a folder in bench/results that is named after this kind of machine.",
)
def command(
    device: str, rounds: int, seconds: float, batch_size: int, n: int, evaluations: int, out: Path | None
) -> None:
    from bench.sides import PEERS, SIDES, cost, our_unet  # these load torch, for which --help should not wait

    device = pick_device(device)
    about = machine(device)
    out = out or Path("bench/results") / kind(about)
    for peer in PEERS:
        if find_spec(peer) is None:
            raise InputError(
                f"the peer {peer} is not installed; run `make bench`, or pip install -e '.[bench]' -c constraints.txt"
            )
    precisions = ["fp32", "bf16"] if has_bf16(device.partition(":")[0]) else ["fp32"]
    costs = {peer: {"peer": cost(make()), "ours": cost(our_unet(peer))} for peer, make in PEERS.items()}
    peak_workers = {precision: Worker("none", "", precision, device, batch_size) for precision in precisions}
    measured: list[tuple[Worker, str]] = []
    for peer in PEERS:
        names = [name for name in SIDES if name in ("ours", "plain", peer)]
        workers = [Worker(name, peer, precision, device, batch_size) for name in names for precision in precisions]
        jobs: list[tuple[Worker, str, dict[str, int]]] = [(worker, "train", {}) for worker in workers]
        draws = {"n": n, "evaluations": evaluations}
        jobs += [(worker, sampler, draws) for worker in workers for sampler in SIDES[worker.name].samplers]
        for worker, what, settings in jobs:  # warm up
            worker.measure(what, seconds=0, **settings)
        for turn in tqdm(range(rounds), desc=peer, unit="round"):
            for worker, what, settings in jobs if turn % 2 == 0 else reversed(jobs):
                worker.values.setdefault(what, []).append(worker.measure(what, seconds=seconds, **settings))
            for worker in peak_workers.values():
                worker.values.setdefault("peak", []).append(worker.measure("peak", seconds=0))
        for worker in workers:
            worker.stop()
        measured += [(worker, what) for worker, what, _ in jobs]
    for worker in peak_workers.values():
        worker.stop()
    peaks = {precision: max(worker.values["peak"]) for precision, worker in peak_workers.items()}
    rows = [worker.row(what, costs[worker.peer]["peer"], peaks) for worker, what in measured]
    results = {"machine": about, "matrix_peak_tflops": peaks, "batch_size": batch_size, "seconds": seconds}
    results |= {"evaluations": evaluations, "n": n, "costs": costs, "rows": rows}
    write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
    bars = [
        {
            "side": f"{row['side']}, {row['precision']}, against {row['against']}",
            "images_per_second": row["images_per_second"],
        }
        for row in rows
        if row["what"] == "train"
    ]
    write_atomic(out / "training.json", json.dumps(bars, indent=1).encode())
    text = table(results)
    write_atomic(out / "table.md", text.encode())
    click.echo(text)


def machine(device: str) -> dict[str, Any]:
    """The machine that the figures were taken on: CPU, cores, GPU, and the versions of torch and Python."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    cpu = {key.strip(): value.strip() for key, _, value in lines}
    return {
        "cpu": cpu.get("model name", ""),
        "flags": [flag for flag in FLAGS if flag in cpu.get("flags", "").split()],
        "cores": len(os.sched_getaffinity(0)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
    }


def kind(about: dict[str, Any]) -> str:
    """The name of a kind of machine: that of the GPU, or the CPU's best units."""
    units = [*about["flags"], about["capability"]]
    return "_".join((about["gpu"] or units[0]).lower().split())


def table(results: dict[str, Any]) -> str:
    """The results in Markdown: each peer's figures and ours beside them."""
    about, peaks = results["machine"], results["matrix_peak_tflops"]
    units = ", ".join([about["capability"], *about["flags"]])
    listed = ", ".join(f"{precision} {value:.2f}" for precision, value in peaks.items())
    place = f"{about['gpu'] or about['cpu']}, {about['cores']} cores, {units}, torch {about['torch']}"
    lines = [f"{place}; matrix peak in TFLOP/s: {listed}"]
    for peer, costs in results["costs"].items():
        sizes = [
            f"{side} {network['parameters'] / 1e6:.2f}M parameters, {network['flops'] / 1e6:.1f} MFLOP"
            for side, network in costs.items()
        ]
        lines += ["", f"**{peer}** ({'; '.join(sizes)})", "", HEADER, "|---" * HEADER.count(" | ") + "|---|"]
        rows = [row for row in results["rows"] if row["against"] == peer]
        for row in rows:
            alike = [other for other in rows if (other["what"] == "train") == (row["what"] == "train")]
            ours = max(other["images_per_second"] for other in alike if other["side"] == "ours")
            cells = [
                row["what"],
                row["side"],
                row["precision"],
                f"{row['images_per_second']:,.0f}",
                f"{row['least']:,.0f} – {row['most']:,.0f}",
                f"{ours / row['images_per_second']:.2f}",
                f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else "",
                str(row["memory_mib"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(command, "bench")
