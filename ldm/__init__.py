"""Latent diffusion from first principles: schedules, targets, samplers, networks, Fréchet distance.

>>> import ldm
>>> model = ldm.load("artifacts")
>>> images = model.sample(16, seed=0)
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """`ldm.load` and `ldm.Pipeline`, imported when used: they bring torch along."""
    if name in ("load", "Pipeline"):
        return getattr(import_module("ldm.pipeline"), name)
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
