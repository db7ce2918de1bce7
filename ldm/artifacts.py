"""Artifacts: safetensors files with one metadata key, written atomically and checked when read.

The metadata key `ldm` holds sorted JSON: schema version, kind, resolved configuration, the SHA-256 of every artifact
that this one was made from (`lineage`), and a digest over the whole file, which safetensors itself lacks. It holds no
date, host name or timing: the same tensors, configuration and lineage give the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors import SafetensorError

from ldm.errors import InputError
from ldm.lazy import Module, Tensor, safetensors_torch

T = TypeVar("T")
SCHEMA = 1
_NO_DIGEST = "0" * 64


class Spec(NamedTuple):
    """What a tensor of an artifact must look like: dtype, and sizes (None: any). An optional one may be missing."""

    dtype: str
    shape: tuple[int | None, ...]
    optional: bool = False


_IMAGES = Spec("torch.uint8", (None, None, None, None))  # (N, C, H, W)
_LABELS = Spec("torch.uint8", (None,))
_LATENTS = Spec("torch.float32", (None, None, None, None))  # (N, C, h, w)
_FEATURES = Spec("torch.float32", (None, None))  # (N, d)
_CHANNELS = Spec("torch.float64", (None,))


def _of_each_split(**specs: Spec) -> dict[str, Spec]:
    return {f"{split}_{name}": spec for split in ("train", "validation", "test") for name, spec in specs.items()}


# kind → (the stage that makes it, its tensors; none stated: the weights of a network)
KINDS: dict[str, tuple[str, dict[str, Spec]]] = {
    "images": ("prepare_data", _of_each_split(images=_IMAGES, labels=_LABELS)),
    "classifier": ("train_classifier", {}),
    "second_classifier": ("train_second_classifier", {}),
    "features": (
        "extract_features",
        {name + space: _FEATURES for name in ("train", "validation", "test") for space in ("", "_second")},
    ),
    "vae": ("train_vae", {}),
    "latents": (
        "encode_latents",
        _of_each_split(mean=_LATENTS, log_variance=_LATENTS) | {"channel_mean": _CHANNELS, "channel_std": _CHANNELS},
    ),
    "denoiser": ("train_diffusion", {}),
    "guide": ("train_diffusion", {}),
    "state": ("", {}),  # of a run that goes on
    "samples": (
        "sample",
        {
            "samples": _LATENTS,
            "labels": _LABELS._replace(optional=True),
            "trajectory": Spec("torch.float32", (None, None, None, None, None)),
        },
    ),
    "generated": ("decode", {"images": _IMAGES}),
}


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact: its tensors, and what its metadata says."""

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    lineage: dict[str, str]  # kind of an ancestor → SHA-256 of its file
    sha256: str

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def build(self, make: Callable[[Mapping[str, Any]], T]) -> T:
        """What `make` builds from the configuration. Raises: InputError where that describes nothing of the kind."""
        try:
            return make(self.config)
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
            raise InputError(
                f"{self.path}: its configuration describes no {self.kind} ({type(error).__name__}: {error}); "
                f"{_remedy(self.kind)}"
            ) from None

    def load_into(self, module: Module) -> None:
        """Copy the weights into a network. Raises: InputError unless names, shapes and dtypes agree."""
        own = module.state_dict()
        for name in sorted(own.keys() ^ self.tensors.keys()):
            problem = "missing" if name in own else "not part of the network"
            raise InputError(f"{self.path}: tensor {name!r} is {problem}; {_remedy(self.kind)}")
        for name, tensor in own.items():
            _check(self.path, self.kind, name, self.tensors[name], Spec(str(tensor.dtype), tuple(tensor.shape)))
        module.load_state_dict(self.tensors)


def save(
    path: Path, kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], parents: Sequence[Artifact] = ()
) -> None:
    """Write an artifact: all of it or nothing, the same bytes for the same content.

    Raises: InputError when the parents do not belong together; OSError when it cannot be written.
    """
    lineage = merge_lineage(parents)
    meta = {"schema": SCHEMA, "kind": kind, "config": dict(config), "lineage": lineage, "digest": _NO_DIGEST}
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"), allow_nan=False)
    raw = safetensors_torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"ldm": text})
    field = _digest_field(_NO_DIGEST)
    if raw.count(field) != 1:
        raise ValueError("the digest's place in the header is not unique")
    write_atomic(path, raw.replace(field, _digest_field(hashlib.sha256(raw).hexdigest())))


def write_weights(path: Path, module: Module) -> None:
    """Write bare weights, atomically: a state to look at, not an artifact that a stage would take."""
    write_atomic(
        path, safetensors_torch.save({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()})
    )


def load(path: Path, kind: str) -> Artifact:
    """Read and check an artifact: digest, schema, kind, tensor names, shapes and dtypes.

    Raises: InputError, naming the file and the command that rebuilds it.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {_remedy(kind)}") from None
    try:
        size = int.from_bytes(raw[:8], "little")
        meta = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["ldm"])
        tensors = safetensors_torch.load(raw)
        digest = meta["digest"]
        unsigned = raw.replace(_digest_field(digest), _digest_field(_NO_DIGEST), 1)
        intact = (
            hashlib.sha256(unsigned).hexdigest() == digest
            and isinstance(meta["config"], dict)
            and isinstance(meta["lineage"], dict)
        )
        labelled = (meta["schema"], meta["kind"])
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError):
        intact = False
    if not intact:
        raise InputError(f"{path} is truncated, corrupt or not an artifact of this project; {_remedy(kind)}")
    if labelled != (SCHEMA, kind):
        raise InputError(
            f"{path} holds {labelled[1]!r} in schema {labelled[0]}, but {kind!r} in schema {SCHEMA} is expected; "
            f"{_remedy(kind)}"
        )
    specs = KINDS[kind][1]
    optional = {name for name, spec in specs.items() if spec.optional and name not in tensors}
    for name in sorted((specs.keys() - optional) ^ tensors.keys()) if specs else ():
        raise InputError(f"{path}: tensor {name!r} is {'missing' if name in specs else 'unknown'}; {_remedy(kind)}")
    for name, tensor in tensors.items() if specs else ():
        _check(path, kind, name, tensor, specs[name])
    return Artifact(path, kind, tensors, meta["config"], meta["lineage"], hashlib.sha256(raw).hexdigest())


def merge_lineage(artifacts: Sequence[Artifact]) -> dict[str, str]:
    """The ancestors of something made from these artifacts: kind → SHA-256.

    Raises: InputError when two of them descend from different artifacts of one kind
    (latents of another VAE, a classifier of another data set).
    """
    merged: dict[str, str] = {}
    origin: dict[str, Path] = {}
    for artifact in artifacts:
        for kind, sha in (*artifact.lineage.items(), (artifact.kind, artifact.sha256)):
            if merged.setdefault(kind, sha) != sha:
                raise InputError(
                    f"{origin[kind]} and {artifact.path} do not belong together: one goes with {kind} {merged[kind][:12]}, "
                    f"the other with {kind} {sha[:12]}; run 'dvc repro' to make them agree, or give the other one by --in too"
                )
            origin.setdefault(kind, artifact.path)
    return merged


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file by way of a temporary one beside it: readers see the old or the new, never a part.

    Raises: OSError; the old file is then as it was, and nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems have no such thing for folders
            raise
    finally:
        os.close(folder)


def _digest_field(digest: str) -> bytes:
    """The digest as it stands in the header, where the metadata is JSON within JSON."""
    return rf"\"digest\":\"{digest}\"".encode()


def _check(path: Path, kind: str, name: str, tensor: Tensor, spec: Spec) -> None:
    dtype, shape = str(tensor.dtype), tuple(tensor.shape)
    fits = len(shape) == len(spec.shape) and all(w in (None, s) for s, w in zip(shape, spec.shape, strict=True))
    if dtype != spec.dtype or not fits:
        expected = tuple("any" if size is None else size for size in spec.shape)
        raise InputError(
            f"{path}: tensor {name!r} is {dtype} {shape}, but {spec.dtype} {expected} is expected; {_remedy(kind)}"
        )


def _remedy(kind: str) -> str:
    stage = KINDS[kind][0]
    return f"rebuild it with 'dvc repro {stage}'" if stage else "remove it, and run the stage again"
