"""The benchmark compares like with like, and its sides learn."""

import json
from pathlib import Path
from statistics import median

import pytest
import torch
from click.testing import CliRunner

from bench import __main__ as bench
from bench.sides import PEERS, SHAPE, SIDES, N, cost, our_unet
from bench.worker import timed
from ldm.errors import InputError
from ldm.precision import has_bf16


@pytest.mark.parametrize("peer", PEERS)
def test_parameters_and_operations_match_within_five_percent(peer):
    pytest.importorskip(peer)
    theirs, ours = cost(PEERS[peer]()), cost(our_unet(peer))
    for what in ("parameters", "flops"):
        assert ours[what] == pytest.approx(theirs[what], rel=0.05)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with a new numpy
@pytest.mark.parametrize("name", SIDES)
def test_each_side_learns_and_draws(name):
    if name not in ("ours", "plain"):
        pytest.importorskip(name)
    side = SIDES[name]("diffusers", "fp32", "cpu", 8)
    before = [p.detach().clone() for p in side.network.parameters()]
    side.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, side.network.parameters(), strict=True))
    for sampler in side.samplers:
        images = side.images(sampler, 2, 4)
        assert images.shape == (2, 1, 32, 32)
        assert images.dtype == torch.uint8
        assert not torch.equal(images[0], images[1])  # each from its own noise


def test_our_step_is_that_of_the_pipeline():
    """The first loss by the formulas of the straight path, its target eps − x0 and a logit-normal t."""
    side = SIDES["ours"]("diffusers", "fp32", "cpu", 8)
    for parameter in side.network.parameters():  # so that the output, which starts at 0, depends on x_t and t
        torch.nn.init.normal_(parameter, std=0.1)
    generator = torch.Generator().manual_seed(0)
    x0 = side.latents[torch.randperm(N, generator=generator)[:8]]
    eps = torch.randn(2, 8, *SHAPE, generator=generator)[1]
    t = torch.randn(8, generator=generator).sigmoid()
    signal, noise = (1 - t)[:, None, None, None], t[:, None, None, None]
    with torch.no_grad():
        output = side.network((signal * x0 + noise * eps) / (signal**2 + noise**2).sqrt(), t)
    assert output.std() > 0.1
    side.step()
    assert side.training.sums[0].item() == pytest.approx((output - (eps - x0)).square().mean().item(), rel=1e-5)


def test_our_samples_are_those_of_the_network():
    """They are the same each time, change with the network, and do not depend on how many are drawn at once."""
    side = SIDES["ours"]("diffusers", "fp32", "cpu", 8)
    drawn = side.draw("ddim", 3, 5)
    assert torch.equal(drawn, side.draw("ddim", 3, 5))
    for parameter in side.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert not torch.allclose(drawn, side.draw("ddim", 3, 5), atol=1e-2)
    torch.testing.assert_close(side.draw("ddim", 2, 5), side.draw("ddim", 3, 5)[:2], rtol=1e-3, atol=1e-4)


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


def test_the_machine_is_named_with_its_units_for_bf16(monkeypatch):
    text = "processor : 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx512f amx_bf16 other_avx512_bf16\n\nprocessor : 1\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    machine = bench.machine("cpu")
    assert machine["cpu"] == "Some CPU"
    assert machine["flags"] == ["amx_bf16"]
    assert machine["torch"] == torch.__version__
    assert machine["gpu"] is None


@pytest.mark.slow
def test_a_run_from_end_to_end(monkeypatch, tmp_path):
    """Against diffusers alone, as short as can be: what the files say follows from the rows' own figures."""
    monkeypatch.setattr("bench.sides.PEERS", {"diffusers": PEERS["diffusers"]})
    sizes = ["--rounds", "3", "--seconds", "0", "--batch-size", "8", "--n", "2", "--evaluations", "2"]
    done = CliRunner().invoke(
        bench.command, [*sizes, "--device", "cpu", "--out", str(tmp_path)], catch_exceptions=False
    )
    assert done.exit_code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["side"], row["what"], row["precision"]): row for row in results["rows"]}
    whats = {"ours": ["train", "dpmpp_2m", "ddim"], "diffusers": ["train", "dpmpp_2m", "ddim"], "plain": ["train"]}
    precisions = ["fp32", "bf16"] if has_bf16("cpu") else ["fp32"]
    assert sorted(rows) == sorted(
        (side, what, precision) for side, found in whats.items() for what in found for precision in precisions
    )
    flops, peaks = results["costs"]["diffusers"]["peer"]["flops"], results["matrix_peak_tflops"]
    assert flops == cost(PEERS["diffusers"]())["flops"]
    for (_, what, precision), row in rows.items():
        speed = row["images_per_second"]
        assert row["against"] == "diffusers"
        assert row["rounds"] == 3
        assert 0 < row["least"] <= speed <= row["most"]
        assert row["memory_mib"] > 100  # torch alone takes more
        assert ("share_of_peak" in row) == (what == "train")
        if what == "train":
            assert row["share_of_peak"] == pytest.approx(3 * flops * speed / (peaks[precision] * 1e12), rel=1e-12)
            assert row["share_of_peak"] < 1
    text = (tmp_path / "table.md").read_text()
    assert done.stdout.endswith(text + "\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert len(cells) == 2 + len(rows)
    assert {len(line) for line in cells} == {8}
    for what, side, precision, speed, spread, ratio, share, _ in cells[2:]:
        row = rows[side, what, precision]
        ours = [r["images_per_second"] for r in rows.values() if r["side"] == "ours"]
        training = [rows["ours", "train", p]["images_per_second"] for p in peaks]
        best = max(training) if what == "train" else max(value for value in ours if value not in training)
        assert ratio == f"{best / row['images_per_second']:.2f}"
        assert speed == f"{row['images_per_second']:,.0f}"
        assert spread == f"{row['least']:,.0f} – {row['most']:,.0f}"
        assert share == (f"{row['share_of_peak']:.0%}" if what == "train" else "")
    bars = json.loads((tmp_path / "training.json").read_text())
    assert [bar["images_per_second"] for bar in bars] == [
        row["images_per_second"] for row in results["rows"] if row["what"] == "train"
    ]
    assert {bar["side"] for bar in bars} == {
        f"{side}, {precision}, against diffusers" for side in whats for precision in peaks
    }


def test_the_middle_of_the_rounds_is_what_counts():
    """A row has the median of its rounds, not the mean, beside the smallest and the largest."""
    worker = bench.Worker("none", "diffusers", "bf16", "cpu", 8)
    worker.stop()
    worker.values["train"] = values = [50.0, 20.0, 900.0]
    row = worker.row("train", {"flops": 10**9}, {"fp32": 1.0, "bf16": 2.0})
    assert (row["least"], row["images_per_second"], row["most"]) == (20.0, median(values), 900.0) == (20.0, 50.0, 900.0)
    assert row["share_of_peak"] == pytest.approx(3 * 1e9 * 50 / 2e12)
