"""The outputs of the small pipeline are those recorded, so that an edit that does change something is noticed.

`python tests/stages/test_digests.py FOLDER` records those of a folder in which tools.small has run, for the kind of CPU
of this machine, in tests/digests.json. Bits differ between kinds of CPU, so elsewhere the test is skipped.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.runner import path_of, read_yaml
from stages.runner.checkpoints import cpu_kind

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests/digests.json"  # kind of CPU → torch, and the digest of each output
OUTPUTS = [path_of(out) for entry in read_yaml(ROOT / "dvc.yaml")["stages"].values() for out in entry["outs"]]


# prints a digest of the gradients of a U-Net; its argument is the precision
GRADIENTS = """
import hashlib, sys, torch
from ldm.networks import networks
from ldm.precision import autocast
torch.manual_seed(0)
unet = networks.build("unet", {"width": 32, "norm": "layer"})((2, 7, 7))
for parameter in unet.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
with autocast(sys.argv[1], "cpu"):
    unet(torch.randn(64, 2, 7, 7), torch.rand(64)).float().square().mean().backward()
print(hashlib.sha256(b"".join(parameter.grad.numpy().tobytes() for parameter in unet.parameters())).hexdigest())
"""


def digest(path: Path) -> str:
    """SHA-256 of a file; of tensors, of their names, types, shapes and values, whatever the file says beside them."""
    if path.suffix != ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    hashed = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hashed.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def digests_of(folder: Path) -> dict[str, str]:
    return {path: digest(folder / path) for path in sorted(OUTPUTS)}


def recorded() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}


@pytest.mark.slow
def test_outputs_are_the_recorded_ones(project):
    known = recorded().get(cpu_kind())
    if known is None:
        pytest.skip(f"no digests are recorded for this kind of CPU: {cpu_kind()}; known are {', '.join(recorded())}")
    if known["torch"] != torch.__version__:
        pytest.skip(f"the digests are those of torch {known['torch']}, and here is {torch.__version__}")
    found = digests_of(project)
    assert sorted(known["outputs"]) == sorted(found)
    differing = [path for path, value in found.items() if known["outputs"][path] != value]
    assert differing == [], "record them anew, by python tests/stages/test_digests.py, if they are meant to change"


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="this CPU has no AMX")
@pytest.mark.parametrize(("precision", "equal"), [("fp32", True), ("bf16", False)])
def test_fp32_has_the_same_bits_without_amx(precision, equal):
    """As on a CPU of the same make that has none; bf16 shows that the setting of oneDNN is heeded."""

    def gradients(**environment: str) -> str:
        command = [sys.executable, "-c", GRADIENTS, precision]
        env = os.environ | environment
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout

    assert (gradients() == gradients(ONEDNN_MAX_CPU_ISA="AVX512_CORE_BF16")) == equal


def test_every_recorded_kind_has_every_output():
    assert recorded()
    for kind, known in recorded().items():
        assert sorted(known["outputs"]) == sorted(OUTPUTS), kind


def test_a_digest_sees_every_bit_and_no_metadata(tmp_path):
    def of(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> str:
        save_file(tensors, tmp_path / "x.safetensors", metadata)
        return digest(tmp_path / "x.safetensors")

    x = torch.arange(6.0).view(2, 3)
    first = of({"x": x, "y": torch.zeros(1)})
    assert of({"y": torch.zeros(1), "x": x}, {"ldm": "{}"}) == first
    others = [{"x": x.view(3, 2), "y": torch.zeros(1)}, {"x": x.double(), "y": torch.zeros(1)}]
    others += [{"x": x, "z": torch.zeros(1)}, {"x": x}, {"x": x, "y": torch.tensor([-0.0])}]
    others += [{"x": x.nextafter(torch.tensor(9.0)), "y": torch.zeros(1)}]
    assert len({first, *map(of, others)}) == 7


def record(folder: Path) -> None:
    """Add the digests of a folder to those of other kinds of CPU."""
    known = recorded() | {cpu_kind(): {"torch": torch.__version__, "outputs": digests_of(folder)}}
    FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")
    print(f"{len(OUTPUTS)} digests for {cpu_kind()} are in {FILE.relative_to(ROOT)}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "artifacts").is_dir():
        sys.exit("usage: python tests/stages/test_digests.py FOLDER, in which python -m tools.small FOLDER has run")
    record(Path(sys.argv[1]))
