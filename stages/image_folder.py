"""A folder of images, one sub-folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ldm.errors import InputError
from stages.cli import warn

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

CHANNELS = {"L": 1, "RGB": 3}  # Pillow's mode → channels
ENDINGS = {".png"}
SIDES = 4  # what the autoencoder reduces a side by


def read(root: Path) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,), both uint8; the classes are the sub-folders, in the order of their names.

    Raises: InputError for no folder or image, more than 256 classes, a file that is no readable PNG of
    grey or colour, images of different sizes or modes, and sides that do not divide.
    """
    import numpy as np
    import torch

    if not root.is_dir():
        raise InputError(f"{root} is not a folder; prepare_data.root must hold one sub-folder of PNG images per class")
    classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(path, label) for label, folder in enumerate(classes) for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS]
    for label, folder in enumerate(classes):
        if not any(of == label for _, of in files):
            raise InputError(f"{folder} holds no PNG image; each sub-folder of {root} is a class, and must have some")
    if not 2 <= len(classes) <= 256:
        raise InputError(f"{root} has sub-folders: {len(classes)}; one per class is wanted, 2 to 256 of them")
    others = sum(path.is_file() for folder in classes for path in folder.iterdir()) - len(files)
    if others:
        warn("prepare_data", f"{others} files in {root} do not end in .png, and are left out")
    first = _pixels(files[0][0])
    if any(side % SIDES for side in first.shape[1:]):
        raise InputError(f"{files[0][0]} is {_described(first)}, but both sides must be divisible by {SIDES}: resize or crop the images")
    images = np.empty((len(files), *first.shape), np.uint8)
    for i, (path, _) in enumerate(files):
        pixels = _pixels(path)
        if pixels.shape != first.shape:
            raise InputError(f"{path} is {_described(pixels)}, but {files[0][0]} is {_described(first)}; all images must be alike")
        images[i] = pixels
    return torch.from_numpy(images), torch.tensor([label for _, label in files], dtype=torch.uint8)


def _pixels(path: Path) -> np.ndarray:
    """uint8, (C, H, W)."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a readable PNG image ({error}); replace or remove it") from None
    if image.mode not in CHANNELS:
        raise InputError(f"{path} has the mode {image.mode}; grey (L) or colour (RGB) of 8 bits is wanted: convert it")
    return np.asarray(image).reshape(image.height, image.width, CHANNELS[image.mode]).transpose(2, 0, 1)


def _described(pixels: np.ndarray) -> str:
    channels, height, width = pixels.shape
    return f"{height} × {width} in {'grey' if channels == 1 else 'colour'}"
