"""What a run makes of its machine: the precision `auto`, what it says of the device, and the memory that it keeps."""

import platform
import sys
import warnings

import pytest
import torch
from conftest import ROOT, run_in

from ldm import InputError, Section
from ldm.precision import Precision, autocast, settled
from ldm.training import Optimisation
from stages.runner import command
from stages.runner.run import Run


class Inner(Section):
    """precision: of this part"""

    precision: Precision = "fp32"


class Outer(Section):
    """a: a part
    n: a number
    """

    a: Inner = Inner()
    n: int = 1


@pytest.fixture
def machine(monkeypatch):
    """A machine with these units of its CPU and GPU."""

    def be(*, amx: bool = False, avx512_bf16: bool = False, gpu_bf16: bool = False) -> None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_bf16)

    return be


@pytest.mark.parametrize(
    ("units", "cpu", "cuda"),
    [
        ({}, "fp32", "fp32"),
        ({"amx": True}, "bf16", "fp32"),
        ({"avx512_bf16": True}, "bf16", "fp32"),
        ({"gpu_bf16": True}, "fp32", "bf16"),
    ],
)
def test_auto_is_bf16_where_the_device_has_units_for_it(machine, units, cpu, cuda):
    machine(**units)
    assert (settled("auto", "cpu"), settled("auto", "cuda")) == (cpu, cuda)
    for device in ("cpu", "cuda"):
        assert [settled(word, device) for word in ("fp32", "bf16")] == ["fp32", "bf16"]
    with autocast("auto", "cpu"):
        found = torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype
    assert found == {"fp32": torch.float32, "bf16": torch.bfloat16}[cpu]


def test_every_auto_of_a_configuration_is_settled(machine):
    machine(amx=True)
    config = Outer.parse({"a": {"precision": "auto"}, "n": 3}, "x")
    assert command.settle(config, "cpu").resolved() == {"a": {"precision": "bf16"}, "n": 3}
    assert command.settle(config, "cuda:1").resolved() == {"a": {"precision": "fp32"}, "n": 3}
    assert config.a.precision == "auto"


def test_a_step_is_recorded_where_it_can_be(machine, monkeypatch):
    machine()
    values = {"steps": 1, "batch_size": 2, "lr": 0.1}
    for stated, cpu, cuda in ((None, False, True), (False, False, False), (True, True, True)):
        config = Optimisation.parse(values | {"capture": stated}, "x")
        assert [command.settle(config, device).capture for device in ("cpu", "cuda", "cuda:1")] == [cpu, cuda, cuda]
    monkeypatch.setattr(command.processes, "COUNT", 2)
    assert command.settle(Optimisation.parse(values, "x"), "cuda").capture is False


def run_of(config: Section) -> Run[Section]:
    return Run("train", config, {}, {}, "cpu")


def test_a_run_says_what_it_computes_with(machine, capsys):
    machine(avx512_bf16=True)
    command.announce(run_of(Outer.parse({"a": {"precision": "bf16"}}, "x")))
    command.announce(run_of(Outer()))
    said = capsys.readouterr()
    threads = torch.get_num_threads()
    assert said.out == f"train: on cpu ({threads} threads), in bf16\ntrain: on cpu ({threads} threads), in fp32\n"
    assert said.err == ""


def test_bf16_without_units_for_it_is_said_to_be_slow(machine, capsys):
    machine()
    command.announce(run_of(Inner.parse({"precision": "bf16"}, "x")))
    (line,) = capsys.readouterr().err.splitlines()
    slow = "this cpu does not multiply in bf16, which takes several times as long as fp32; set precision auto"
    assert line == f"train: warning: {slow}"


def test_a_gpu_that_torch_cannot_use_is_named_with_torchs_reason(monkeypatch, capsys):
    def available() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old (found version 11040). Please update", stacklevel=1)
        return False

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(command.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert command.pick_device("auto") == "cpu"
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot use this machine's NVIDIA GPU (The NVIDIA driver on your system is too old" in line
    with pytest.raises(InputError, match=r"0 usable GPUs \(The NVIDIA driver on your system is too old .*choose cpu"):
        command.pick_device("cuda")
    monkeypatch.setattr(command.shutil, "which", lambda name: None)
    for there, lines in ((ROOT, 1), (ROOT / "nothing", 0)):  # a container may have the driver without its tools
        monkeypatch.setattr(command, "DRIVER", there)
        assert command.pick_device("auto") == "cpu"
        assert capsys.readouterr().err.count("\n") == lines


def test_a_gpu_for_which_torch_was_not_built_is_not_taken(monkeypatch, capsys):
    """Of two cards the first alone is new enough; of one that is too old, the CPU is taken instead."""
    capability = {0: (9, 0), 1: (7, 0)}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capability))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "compute_120"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability[index])
    monkeypatch.setattr(command.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert command.pick_device("auto") == "cuda"
    reason = r"1 usable GPUs \(cuda:1 has compute capability 7.0, and torch is built for 7.5 on\); choose cuda:0"
    with pytest.raises(InputError, match=reason):
        command.pick_device("cuda:1")
    capability[0] = (6, 1)
    assert command.pick_device("auto") == "cpu"
    assert "GPU (cuda:0 has compute capability 6.1, and torch is built for 7.5 on); the CPU" in capsys.readouterr().err


def test_fp32_is_that_of_ieee_754_within_the_model_and_then_as_before():
    """Whichever of PyTorch's two interfaces asked for TF32: once both were used, it refuses to answer by the older."""
    script = "import torch; from ldm.precision import ieee_fp32; backends = torch.backends\n{asked}\n"
    script += "def now(): return [backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision]\n"
    script += "before = now()\nwith ieee_fp32(): assert now() == ['ieee', 'ieee']\n"
    script += "assert now() == before; print(*before)"
    for asked, own in (
        ("backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = True", "tf32 tf32"),
        ("backends.fp32_precision = 'tf32'", "tf32 tf32"),
        ("torch.set_float32_matmul_precision('high')", "tf32"),
    ):
        done = run_in(ROOT, sys.executable, "-c", script.format(asked=asked))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(own)


@pytest.mark.slow
def test_fp32_is_that_of_ieee_754_once_a_stage_runs(project):
    """What a stage sets is process-wide, so it is looked at in a process of its own."""
    script = "import sys, torch; from ldm.networks import autoencoder; from stages import encode_latents\n"
    script += "backends, encode = torch.backends, autoencoder.encode_images; sys.argv[1:] = ['--out', 'tmp/ieee']\n"
    script += "def looked_at(*arguments):\n"
    script += "    print('now', backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision)\n"
    script += "    return encode(*arguments)\n"
    script += "autoencoder.encode_images = looked_at; encode_latents.main()"
    done = run_in(project, "python", "-c", script)
    assert "now ieee ieee" in done.stdout.splitlines(), done.stderr


PAGED = """
import resource, sys, torch
from stages.runner.command import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    x = [torch.ones(2_000_000) for _ in range(4)]
for _ in range(5):  # in which the heap grows to all that a step takes
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_not_paged_in_anew():
    """Twenty steps that take and free 32 MB each: 160,000 pages, were they left to glibc, and in most runs they are."""
    assert int(run_in(ROOT, sys.executable, "-c", PAGED, "keep").stdout) < 100
