"""A folder of PNG images, one sub-folder per class."""

from pathlib import Path

import numpy as np
from PIL import Image

from ldm.errors import InputError
from ldm.lazy import Tensor, torch

CHANNELS = {"L": 1, "RGB": 3}  # Pillow's mode → channels
SIDES = 4  # what the autoencoder reduces a side by


def read(root: Path) -> tuple[Tensor, Tensor, int]:
    """Images (N, C, H, W), labels (N,), both uint8, and the number of files left out since they do not end in .png.

    The classes are the sub-folders, in the order of their names. Raises: InputError for no folder or image, more than
    256 classes, a file that is no readable PNG of grey or colour, images of different sizes or modes, and sides that
    do not divide.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; prepare_data.root must hold one sub-folder of PNG images per class")
    classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    members = [sorted(path for path in folder.iterdir() if path.is_file()) for folder in classes]
    images = [[path for path in paths if path.suffix.lower() == ".png"] for paths in members]
    for folder, paths in zip(classes, images, strict=True):
        if not paths:
            raise InputError(f"{folder} holds no PNG image; each sub-folder of {root} is a class, and must have some")
    if not 2 <= len(classes) <= 256:
        raise InputError(f"{root} has {len(classes)} sub-folders; one per class is wanted, 2 to 256 of them")
    paths = [path for group in images for path in group]
    first = _pixels(paths[0])
    if any(side % SIDES for side in first.shape[1:]):
        raise InputError(f"{paths[0]} is {_described(first)}, but both sides must be divisible by {SIDES}: resize it")
    pixels = np.empty((len(paths), *first.shape), np.uint8)
    for i, path in enumerate(paths):
        image = _pixels(path)
        if image.shape != first.shape:
            raise InputError(f"{path} is {_described(image)}, but {paths[0]} is {_described(first)}; all must be alike")
        pixels[i] = image
    labels = np.repeat(np.arange(len(classes), dtype=np.uint8), [len(group) for group in images])
    return torch.from_numpy(pixels), torch.from_numpy(labels), sum(map(len, members)) - len(paths)


def _pixels(path: Path) -> np.ndarray:
    """uint8, (C, H, W)."""
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
