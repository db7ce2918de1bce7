"""Latent diffusion from first principles: schedules, predictions, samplers, networks, Fréchet distance.

>>> import ldm
>>> model = ldm.load("artifacts/export/model.safetensors")
>>> images = model.sample(16, seed=0)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
