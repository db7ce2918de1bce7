"""The arithmetic that a network computes in: IEEE fp32, or bf16 by autocast."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from ldm.lazy import torch

Precision = Literal["auto", "fp32", "bf16"]


def has_bf16(device_type: str) -> bool:
    """Whether this machine's CPU, or its CUDA device, has instructions that multiply in bf16; nothing is timed."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def settled(precision: Precision, device_type: str) -> Precision:
    """The precision itself; for `auto`, what it means on this machine: bf16 where `has_bf16`, else fp32."""
    return precision if precision != "auto" else "bf16" if has_bf16(device_type) else "fp32"


@contextmanager
def ieee_fp32() -> Iterator[None]:
    """A context in which fp32 on a GPU is that of IEEE 754, without TF32; a stage computes in it from start to end.

    When it ends, products and convolutions get back the setting that they had before.
    """
    backends: Any = torch.backends
    operations = [backends.cudnn.conv, backends.cuda.matmul]
    before = [operation.fp32_precision for operation in operations]
    for operation in operations:
        operation.fp32_precision = "ieee"
    try:
        yield
    finally:
        for operation, own in zip(operations, before, strict=True):
            operation.fp32_precision = own


def autocast(precision: Precision, device_type: str) -> Any:
    """The context in which a network computes in this precision."""
    return torch.autocast(device_type, torch.bfloat16, enabled=settled(precision, device_type) == "bf16")
