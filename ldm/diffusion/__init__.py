"""Noise schedules, what a network predicts, its loss, and the denoiser. Importing a page registers its choices."""

from ldm.diffusion import chains as chains
from ldm.diffusion import sde as sde
