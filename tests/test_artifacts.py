"""Artifacts: the same bytes for the same content, and nothing wrong is ever loaded."""

import json
import os
import struct
import sys

import pytest
import torch
from conftest import ROOT, run_in
from torch import nn

from ldm import artifacts
from ldm.errors import InputError


def latents(n: int = 3, shift: float = 0.0) -> dict[str, torch.Tensor]:
    x = torch.arange(n * 8, dtype=torch.float32).view(n, 2, 2, 2) + shift
    tensors = {f"{s}_{w}": x.clone() for s in ("train", "validation", "test") for w in ("mean", "log_variance")}
    return tensors | {"channel_mean": torch.zeros(2).double(), "channel_std": torch.ones(2).double()}


def test_round_trip_and_same_bytes(tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    artifacts.save(a, "latents", latents(), {"z": 1, "a": [0.5]})
    artifacts.save(b, "latents", dict(reversed(latents().items())), {"a": [0.5], "z": 1})
    assert a.read_bytes() == b.read_bytes()
    loaded = artifacts.load(a, "latents")
    assert loaded.config == {"a": [0.5], "z": 1}
    assert all(torch.equal(loaded[k], v) for k, v in latents().items())
    assert sorted(tmp_path.iterdir()) == [a, b]  # no temporary file is left


def test_exactly_one_metadata_key(tmp_path):
    path = tmp_path / "a.safetensors"
    artifacts.save(path, "latents", latents(), {})
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    assert list(header["__metadata__"]) == ["ldm"]
    meta = json.loads(header["__metadata__"]["ldm"])
    assert list(meta) == sorted(meta) == ["config", "digest", "kind", "lineage", "schema"]


def test_any_flipped_byte_or_truncation_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    artifacts.save(path, "latents", latents(), {"seed": 1})
    raw = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(raw), (300,), generator=generator).tolist()
    values = torch.randint(1, 256, (300,), generator=generator).tolist()
    for place, value in zip([*range(8), *places], [*range(1, 9), *values], strict=True):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ value]) + raw[place + 1 :])
        with pytest.raises(InputError, match="dvc repro encode_latents"):
            artifacts.load(path, "latents")
    for size in (0, 4, 8, 100, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(InputError, match="truncated, corrupt"):
            artifacts.load(path, "latents")


def test_missing_file_names_the_stage(tmp_path):
    with pytest.raises(InputError, match=r"vae\.safetensors is missing; rebuild it with 'dvc repro train_vae'"):
        artifacts.load(tmp_path / "vae.safetensors", "vae")


def test_another_kind_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    artifacts.save(path, "latents", latents(), {})
    with pytest.raises(InputError, match="holds 'latents'"):
        artifacts.load(path, "vae")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("train_mean", None, "'train_mean' is missing"),
        ("extra", torch.zeros(1), "'extra' is not part of it"),
        ("test_mean", torch.zeros(3, 2, 2, 2).double(), r"'test_mean' is torch.float64"),
        ("channel_std", torch.ones(2, 1).double(), r"'channel_std' is torch.float64 \(2, 1\)"),
        ("channel_std", torch.ones(3).double(), r"'channel_std' is torch.float64 \(3,\), but torch.float64 \(2,\) is"),
        (
            "test_log_variance",
            torch.ones(4, 2, 2, 2),
            r"'test_log_variance' is .* \(4, 2, 2, 2\), but .* \(3, 2, 2, 2\) is",
        ),
        ("test_log_variance", torch.ones(3, 1, 2, 3), r"'test_log_variance' is .*, but .* \(3, 1, 2, 2\) is expected"),
        ("test_mean", torch.ones(3, 2, 2, 3), r"'test_mean' is .* \(3, 2, 2, 3\), but .* \(3, 2, 2, 2\) is"),
        ("test_mean", torch.full((3, 2, 2, 2), torch.nan), "'test_mean' holds NaN or infinite values"),
    ],
)
def test_tensors_are_checked(tmp_path, name, value, words):
    tensors = latents() | {name: value}
    artifacts.save(tmp_path / "a.safetensors", "latents", {k: v for k, v in tensors.items() if v is not None}, {})
    with pytest.raises(InputError, match=words):
        artifacts.load(tmp_path / "a.safetensors", "latents")


def test_one_variance_of_all_latents_will_do(tmp_path):
    """As `Posterior.exact` has it, where latents are pixels, or drawn once."""
    tensors = latents() | {f"{split}_log_variance": torch.ones(3, 1, 1, 1) for split in ("train", "validation", "test")}
    artifacts.save(tmp_path / "a.safetensors", "latents", tensors, {})
    assert artifacts.load(tmp_path / "a.safetensors", "latents")["test_log_variance"].shape == (3, 1, 1, 1)


def family(folder, shift: float) -> tuple[artifacts.Artifact, artifacts.Artifact]:
    """A VAE, and latents made from it."""
    artifacts.save(folder / "vae.safetensors", "vae", {"w": torch.full((2,), shift)}, {})
    vae = artifacts.load(folder / "vae.safetensors", "vae")
    artifacts.save(folder / "latents.safetensors", "latents", latents(shift=shift), {}, [vae])
    return vae, artifacts.load(folder / "latents.safetensors", "latents")


def test_images_that_are_not_bytes_are_refused(tmp_path):
    """So that no value outside [0, 255] is ever scored."""
    artifacts.save(tmp_path / "generated.safetensors", "generated", {"images": torch.full((3, 1, 28, 28), 300.0)}, {})
    with pytest.raises(InputError, match=r"'images' is torch\.float32 .*, but torch\.uint8 .* is expected"):
        artifacts.load(tmp_path / "generated.safetensors", "generated")


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("artifacts/sample/samples.safetensors", "dvc repro sample"),
        ("recipes/x/artifacts/sample/samples.safetensors", "dvc repro recipes/x/dvc.yaml:sample"),
        ("elsewhere/samples.safetensors", "dvc repro sample"),
    ],
)
def test_a_missing_artifact_is_rebuilt_by_its_own_pipeline(monkeypatch, tmp_path, path, command):
    monkeypatch.chdir(tmp_path)  # not the checkout, in which the pipeline may have run
    with pytest.raises(InputError, match=f"{path} is missing in .*; rebuild it with '{command}'$"):
        artifacts.load(path, "samples")


def test_lineage_of_strangers_is_refused(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    vae, own = family(tmp_path / "one", 0.0)
    other_vae, other = family(tmp_path / "two", 1.0)
    assert own.lineage == {"vae": vae.sha256}
    assert artifacts.merge_lineage([vae, own]) == {"vae": vae.sha256, "latents": own.sha256}
    with pytest.raises(InputError) as caught:
        artifacts.merge_lineage([other_vae, own])
    message = str(caught.value)
    assert str(other_vae.path) in message
    assert str(own.path) in message
    assert vae.sha256[:12] in message
    assert other_vae.sha256[:12] in message
    with pytest.raises(InputError, match="do not belong together"):
        artifacts.save(tmp_path / "x.safetensors", "samples", {}, {}, [own, other])
    assert not (tmp_path / "x.safetensors").exists()


def test_weights_must_fit_the_network(tmp_path):
    layer = nn.Linear(2, 3)
    path = tmp_path / "vae.safetensors"
    artifacts.save(path, "vae", layer.state_dict(), {})
    loaded = artifacts.load(path, "vae")
    fresh = nn.Linear(2, 3)
    loaded.load_into(fresh)
    assert torch.equal(fresh.weight, layer.weight)
    with pytest.raises(InputError, match=r"'bias' is not part of it"):
        loaded.load_into(nn.Linear(2, 3, bias=False))
    with pytest.raises(InputError, match=r"'weight' is torch.float32 \(3, 2\), but torch.float32 \(4, 2\)"):
        loaded.load_into(nn.Linear(2, 4))


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    artifacts.write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        artifacts.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_goes_through_no_link(tmp_path):
    """One that stands where the temporary file goes is removed, and what it leads to stays as it is."""
    path, other = tmp_path / "a.json", tmp_path / "other"
    other.write_bytes(b"another's")
    (tmp_path / f".a.json.{os.getpid()}.tmp").symlink_to(other)
    artifacts.write_atomic(path, b"ne", memoryview(b"w"))
    assert (path.read_bytes(), other.read_bytes()) == (b"new", b"another's")
    assert sorted(tmp_path.iterdir()) == [path, other]


LOAD = """
import re, sys
from pathlib import Path
from ldm import artifacts
def mebibytes(what):
    return int(re.search(f"{what}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
artifacts.load(Path(sys.argv[1]), "state")  # what is imported for it
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
before = mebibytes("VmRSS")
found = artifacts.load(Path(sys.argv[2]), "state")
print(mebibytes("VmHWM") - before, float(found["x"].sum()))
"""


def test_a_file_is_in_memory_once_beside_its_pages(tmp_path):
    """A large one: the tensors, and what of the file the system keeps, and no third time."""
    for name, count in (("small", 1), ("large", 64 * 2**18)):  # of 4 bytes: 64 MiB
        artifacts.save(tmp_path / name, "state", {"x": torch.ones(count)}, {})
    done = run_in(tmp_path, sys.executable, "-c", LOAD, "small", "large", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    grown, total = map(float, done.stdout.split())
    assert total == 64 * 2**18
    assert 60 < grown < 140  # 192 MiB with a third


def test_a_file_that_changes_afterwards_does_not_change_the_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    artifacts.save(path, "state", {"x": torch.ones(1000)}, {})
    found = artifacts.load(path, "state")
    with path.open("r+b") as file:
        file.seek(-2000, os.SEEK_END)
        file.write(bytes(2000))
    assert found["x"].sum() == 1000
    found.tensors["x"] += 1  # and they may be edited
