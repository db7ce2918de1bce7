"""Artifacts: safetensors files with one metadata key, written atomically and checked when read.

The metadata key `ldm` holds sorted JSON: the version of this format (`schema`), what the artifact is (`kind`), the
configuration it was made with, defaults included, the SHA-256 of every artifact that it was made from (`lineage`), and
a digest over the whole file, which safetensors itself lacks. It holds no date, host name or timing: the same tensors,
configuration and lineage give the same bytes.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from ldm.errors import InputError
from ldm.lazy import Module, Tensor, safetensors_torch

T = TypeVar("T")
N = TypeVar("N", bound=Module)
SCHEMA = 1
PIECE = 2**20  # bytes of a file that are hashed at a time
_NO_DIGEST = "0" * 64
# kind → the stage that makes it; "state" and "weights", of a training that is not at its end, have none
STAGES = {"images": "prepare_data", "features": "extract_features", "vae": "train_vae", "latents": "encode_latents"}
STAGES |= {kind: f"train_{kind}" for kind in ("classifier", "second_classifier")}
STAGES |= {"denoiser": "train_diffusion", "guide": "train_diffusion", "samples": "sample", "generated": "decode"}
STAGES |= {"model": "export"}
# kind → its tensors, as dtype and dimensions; other kinds hold a network's weights. In a name, * stands for each of the
# splits train, validation and test; ? marks a tensor that may be missing. Dimensions of one letter have one size, N one
# in each split; where |1 follows, 1 will do too
TENSORS = {
    "images": {"*_images": "uint8 N C H W", "*_labels": "uint8 N"},
    "features": {"*": "float32 N d", "*_second": "float32 N d"},
    "latents": {"*_mean": "float32 N c h w", "*_log_variance": "float32 N c|1 h|1 w|1"}
    | {"channel_mean": "float64 c", "channel_std": "float64 c"},
    "samples": {"samples": "float32 N c h w", "labels?": "uint8 N", "trajectory": "float32 n T c h w"},
    "generated": {"images": "uint8 N C H W", "labels?": "uint8 N"},
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
            problem = f"its configuration describes no {self.kind} ({type(error).__name__}: {error})"
            raise InputError(f"{self.path}: {problem}; {_remedy(self.kind, self.path)}") from None

    def load_into(self, network: N, device: str = "cpu") -> N:
        """Copy the weights into a network, and return it on a device, in evaluation mode.

        Raises: InputError unless names, shapes and dtypes agree.
        """
        expected = {name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
        self.check_tensors(expected)
        network.load_state_dict(self.tensors)
        return network.eval().to(device)

    def check_tensors(self, expected: Mapping[str, tuple[str, tuple[int | None, ...]]]) -> None:
        """Compare with name → dtype, and the size of each dimension (None: any).

        Raises: InputError for a tensor too many or too few, or one of another dtype or shape.
        """
        for name in sorted(expected.keys() ^ self.tensors.keys()):
            problem = "missing" if name in expected else "not part of it"
            raise InputError(f"{self.path}: tensor {name!r} is {problem}; {_remedy(self.kind, self.path)}")
        for name, (dtype, sizes) in expected.items():
            own, shape = str(self[name].dtype), tuple(self[name].shape)
            fits = len(shape) == len(sizes) and all(w in (None, s) for s, w in zip(shape, sizes, strict=True))
            if own != dtype or not fits:
                wanted = f"{dtype} {tuple('any' if size is None else size for size in sizes)} is expected"
                problem = f"tensor {name!r} is {own} {shape}, but {wanted}"
                raise InputError(f"{self.path}: {problem}; {_remedy(self.kind, self.path)}")


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
    end = 8 + int.from_bytes(raw[:8], "little")
    header, field = raw[:end], _digest_field(_NO_DIGEST)
    if header.count(field) != 1:
        raise ValueError("the digest's place in the header is not unique")
    header = header.replace(field, _digest_field(hashlib.sha256(raw).hexdigest()))
    write_atomic(path, header, memoryview(raw)[end:])


def load(path: str | Path, kind: str) -> Artifact:
    """Read and check an artifact: digest, schema, kind, tensor names, shapes and dtypes.

    The file is hashed in pieces, and its tensors are the one copy of it in memory. Raises: InputError, naming the file
    and the command that rebuilds it.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise InputError(f"{path} is missing{where}; {_remedy(kind, path)}") from None
    try:
        with file:
            start = file.read(8)
            header = start + file.read(min(int.from_bytes(start, "little"), os.fstat(file.fileno()).st_size))
            meta = json.loads(json.loads(header[8:])["__metadata__"]["ldm"])
            digest = meta["digest"]
            unsigned = hashlib.sha256(header.replace(_digest_field(digest), _digest_field(_NO_DIGEST), 1))
            whole = hashlib.sha256(header)
            while piece := file.read(PIECE):
                unsigned.update(piece)
                whole.update(piece)
        # the library maps the file into memory, where whoever changed the file would change the tensors
        tensors = {name: tensor.clone() for name, tensor in safetensors_torch.load_file(path).items()}
        mappings = isinstance(meta["config"], dict) and isinstance(meta["lineage"], dict)
        intact = mappings and unsigned.hexdigest() == digest
        schema, own_kind = meta["schema"], meta["kind"]
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        intact = False
    if not intact:
        raise InputError(f"{path} is truncated, corrupt or not an artifact of this project; {_remedy(kind, path)}")
    if (schema, own_kind) != (SCHEMA, kind):
        expected = f"{kind!r} in schema {SCHEMA}"
        raise InputError(f"{path} holds {own_kind!r} in schema {schema}, not {expected}; {_remedy(kind, path)}")
    artifact = Artifact(path, kind, tensors, meta["config"], meta["lineage"], whole.hexdigest())
    if kind in TENSORS:
        _check_form(artifact)
    return artifact


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
                problem = f"one goes with {kind} {merged[kind][:12]}, the other with {kind} {sha[:12]}"
                remedy = "run 'dvc repro' to make them agree, or give the other one by --in too"
                raise InputError(f"{origin[kind]} and {artifact.path} do not belong together: {problem}; {remedy}")
            origin.setdefault(kind, artifact.path)
    return merged


def write_atomic(path: Path, *data: bytes | memoryview) -> None:
    """Write a file, piece by piece, by way of a temporary one beside it: readers see the old or the new, never a part.

    It is on the disk when this returns. Raises: OSError where it cannot be written; the old file is then as it was, and
    no temporary one is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a process of the same number that was killed
        with open(temporary, "xb") as file:  # anew, never through a link
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(folder)


def _digest_field(digest: str) -> bytes:
    """The digest as it stands in the header, where the metadata is JSON within JSON."""
    return rf"\"digest\":\"{digest}\"".encode()


def _check_form(artifact: Artifact) -> None:
    """Check the tensors against the list TENSORS of their kind.

    Raises: InputError unless they are the ones listed, fit together, and are finite.
    """
    expected: dict[str, tuple[str, tuple[int | None, ...]]] = {}
    sizes: dict[str, int] = {}  # dimension, of its split → that of the first tensor which has it
    for pattern, form in TENSORS[artifact.kind].items():
        for split in ("train", "validation", "test") if "*" in pattern else ("",):
            name, optional = pattern.replace("*", split).rstrip("?"), pattern.endswith("?")
            if optional and name not in artifact.tensors:
                continue
            dtype, *dimensions = form.replace("N", f"{split}_N").split()
            own = artifact.tensors[name].shape if name in artifact.tensors else ()
            sizes = dict(zip(dimensions, own, strict=False)) | sizes
            ones = {x for x, size in zip(dimensions, own, strict=False) if x.endswith("|1") and size == 1}
            wanted = [1 if x in ones else sizes.get(x.removesuffix("|1")) for x in dimensions]
            expected[name] = f"torch.{dtype}", tuple(wanted)
    artifact.check_tensors(expected)
    for name, tensor in artifact.tensors.items():
        if not tensor.isfinite().all():
            remedy = _remedy(artifact.kind, artifact.path)
            raise InputError(f"{artifact.path}: tensor {name!r} holds NaN or infinite values; {remedy}")


def _remedy(kind: str, path: Path) -> str:
    """The command that makes a file anew, in its recipe where it lies in one's folder artifacts."""
    if kind not in STAGES:
        return "remove it, and run the stage again"
    recipe, marker, _ = path.as_posix().rpartition("/artifacts/")
    return f"rebuild it with 'dvc repro {f'{recipe}/dvc.yaml:' if marker and recipe else ''}{STAGES[kind]}'"
