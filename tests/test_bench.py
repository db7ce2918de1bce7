"""The benchmark compares like with like, and its sides learn."""

import json

import pytest
import torch
from click.testing import CliRunner

from bench import __main__ as bench
from bench.sides import SIDES, our_unet
from bench.worker import timed
from ldm.errors import InputError


@pytest.mark.parametrize("peer", bench.PEERS)
def test_parameters_and_operations_match_within_five_percent(peer):
    pytest.importorskip(peer)
    theirs, ours = bench.cost(bench.PEERS[peer]()), bench.cost(our_unet(peer))
    for what in ("parameters", "flops"):
        assert ours[what] == pytest.approx(theirs[what], rel=0.05)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with a new numpy
@pytest.mark.parametrize("name", SIDES)
def test_each_side_learns_and_draws(name):
    if name not in ("ours", "plain"):
        pytest.importorskip(name)
    side = SIDES[name]("diffusers", "fp32", "cpu", 8)
    module = next(m for m in vars(side).values() if isinstance(m, torch.nn.Module) and m is not side.vae) if name != "ours" else side.denoiser.network
    before = [p.detach().clone() for p in module.parameters()]
    side.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    for sampler in side.samplers:
        images = side.images(sampler, 2, 4)
        assert images.shape == (2, 1, 32, 32)
        assert images.dtype == torch.uint8


def test_the_clock_counts_whole_pieces_of_work(monkeypatch):
    """A piece takes 0.4 s: within 1 s three are begun, and they end after 1.2 s."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def work() -> None:
        now[0] += 0.4

    assert timed("cpu", 1.0, 10, work) == pytest.approx(30 / 1.2)


def test_a_side_that_dies_says_why():
    worker = bench.Worker("ours", "nosuch", "fp32", "cpu", 8)
    with pytest.raises(InputError, match=r"ours in fp32 has died \(exit code 1\): KeyError: 'nosuch'"):
        worker.measure("train", seconds=0)
    worker.stop()


def test_a_run_from_end_to_end(monkeypatch, tmp_path):
    """Against diffusers alone, as short as can be."""
    monkeypatch.setattr(bench, "PEERS", {"diffusers": bench.diffusers_unet})
    arguments = ["--rounds", "2", "--seconds", "0", "--batch-size", "8", "--n", "2", "--evaluations", "2", "--device", "cpu", "--out", str(tmp_path)]
    done = CliRunner().invoke(bench.command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    sides = {(r["side"], r["what"], r["precision"]) for r in results["rows"]}
    whats = {"ours": ["train", "dpmpp_2m", "ddim"], "diffusers": ["train", "dpmpp_2m", "ddim"], "plain": ["train"]}
    assert sides == {(side, what, precision) for side, found in whats.items() for what in found for precision in ("fp32", "bf16")}
    assert all(0 < r["least"] <= r["images_per_second"] <= r["most"] and r["memory_mib"] > 100 for r in results["rows"])
    assert all(0 < r["share_of_peak"] < 1 for r in results["rows"] if r["what"] == "train")
    assert "| train | diffusers | bf16 |" in (tmp_path / "table.md").read_text()
