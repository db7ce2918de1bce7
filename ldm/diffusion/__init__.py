"""Noise schedules, what a network predicts, its loss, and the denoiser; each page is loaded when it is used."""

import lazy_loader

from ldm.diffusion import chains as chains  # registers its schedules
from ldm.diffusion import sde as sde

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
