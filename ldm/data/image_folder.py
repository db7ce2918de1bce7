"""A folder of pictures as people have them, one sub-folder per class: listed by torchvision, converted by Pillow."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder

from ldm.errors import InputError
from ldm.images import LARGEST_SIDE

Pixels = NDArray[np.uint8]  # (H, W, 1) or (H, W, 3)

MOST_CLASSES = 256  # classes, whose numbers are bytes
BITS_PER_SAMPLE = 258  # the tag of a TIFF file
Image.init()
# what Pillow opens, but for what starts another program, and for what is no picture
FORMATS = sorted(set(Image.OPEN) - {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"})
HIDDEN = "__MACOSX"  # the folder that macOS adds to an archive; its files are hidden by their names
# how a picture comes to a size (width, height)
FITS: dict[str, Callable[[Image.Image, tuple[int, int], str], Image.Image]] = {
    "crop": lambda image, size, background: ImageOps.fit(image, size),
    "pad": lambda image, size, background: ImageOps.pad(image, size, color=background),
    "stretch": lambda image, size, background: image.resize(size),
}
LAYOUT = "each sub-folder is a class, by which the table's features are trained and samples are asked for"


class Conversion(NamedTuple):
    """What is made of a picture.

    size: height and width, None as it is; fit: how a picture comes to that size; channels: grey, colour, or auto, which
    is grey where every pixel is; background: the colour behind what is transparent, and beside what is padded, by a
    name or as #rrggbb.
    """

    size: tuple[int, int] | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    channels: Literal["auto", "grey", "colour"] = "auto"
    background: str = "white"


class Pictures(NamedTuple):
    """The pictures of a folder: files, the class of each, the classes' names, and in words what was left out."""

    paths: list[Path]
    labels: list[int]
    names: list[str]
    left_out: list[str]


class Folder(ImageFolder):
    """torchvision's listing, but classes are sorted as people sort, and what is hidden is left out."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = [name for name in os.listdir(directory) if Path(directory, name).is_dir() and not is_hidden(name)]
        for name in names:
            if (shown := name.encode("utf-8", "replace").decode()) != name:
                raise InputError(f"{directory}: the name of the folder {shown} is no UTF-8; rename it")
        if not names:
            raise InputError(f"{directory} has no sub-folders: {LAYOUT}; lay the pictures out as {directory}/oak/1.png")
        if len(names) == 1:
            remedy = f"name {Path(directory, names[0])} if its own sub-folders are the classes"
            raise InputError(f"{directory} has one sub-folder, and at least 2 are wanted: {LAYOUT}; {remedy}")
        names.sort(key=as_people_sort)
        return names, {name: index for index, name in enumerate(names)}


def find(root: Path) -> Pictures:
    """List the pictures below the sub-folders of `root`, however deep.

    Raises: InputError for no folder, fewer than 2 classes, a link that leads back to a folder it is in, and a link to
    nothing beside the class folders.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; prepare_data.root must hold one sub-folder of pictures per class")
    files = [Path(folder, name).relative_to(root) for folder, names in walk(root) for name in names]
    suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS}

    def wanted(path: str) -> bool:
        own, pipe = Path(path).relative_to(root), os.path.exists(path) and not os.path.isfile(path)
        return not pipe and not any(map(is_hidden, own.parts)) and own.suffix.lower() in suffixes

    hidden = [path for path in files if any(map(is_hidden, path.parts))]
    beside = [path for path in files if len(path.parts) == 1 and path not in hidden]
    if lost := [path for path in beside if not os.path.exists(root / path)]:
        raise InputError(f"{root / lost[0]} is a link to nothing, which may be a class; mend or remove it")
    listed = Folder(str(root), is_valid_file=wanted, allow_empty=True)
    taken = {Path(path).relative_to(root) for path, _ in listed.samples}
    others = sorted(set(files) - taken - {*hidden, *beside})
    kinds = {"hidden": hidden, "beside the class folders": beside, "no pictures by their names, or no files": others}
    left_out = [f"{len(paths)} {kind} ({listing(paths)})" for kind, paths in kinds.items() if paths]
    paths = [Path(path) for path, _ in listed.samples]
    return Pictures(paths, [label for _, label in listed.samples], listed.classes, left_out)


def walk(root: Path, hidden: bool = False) -> Iterator[tuple[Path, list[str]]]:
    """Each folder below `root` and the names of its files, links followed.

    hidden: look into hidden folders beside the class folders too, which else have their names among the files'.
    Raises: InputError for a circle of links; OSError for a folder that may not be read.
    """
    above = {str(root): {os.path.realpath(root)}}  # folder → the real places of it and of those it is in
    for folder, inner, names in os.walk(root, onerror=_raise, followlinks=True):
        own = above.pop(folder)
        if folder == str(root) and not hidden:
            names += [name for name in inner if is_hidden(name)]
            inner[:] = [name for name in inner if not is_hidden(name)]
        for name in inner:
            path = os.path.join(folder, name)
            if (real := os.path.realpath(path)) in own:
                raise InputError(f"{path} is a link to {real}, in which it lies itself; remove it")
            above[path] = own | {real}
        yield Path(folder), names


def _raise(error: OSError) -> None:
    raise error


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden: its name begins with a dot, or is macOS's own in archives."""
    return name.startswith(".") or name == HIDDEN


def as_people_sort(name: str) -> tuple[list[str | int], str]:
    """A key by which 2 comes before 10, and capitals do not matter."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)], name


def listing(things: Iterable[object], most: int = 3) -> str:
    """The first few, and dots for more."""
    named = [str(thing) for thing in things]
    return ", ".join(named[:most]) + (", …" if len(named) > most else "")


def convert(paths: list[Path], conversion: Conversion) -> Iterator[Pixels | str]:
    """Read pictures, several at a time; for one that cannot be read, the reason, which names the file.

    Raises: InputError for one that is too large, or cannot come to its size.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(cpu_count()) as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield from pool.map(partial(_pixels_or_reason, conversion=conversion), paths)


def _pixels_or_reason(path: Path, conversion: Conversion) -> Pixels | str:
    try:
        return pixels_of(path, conversion)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # a reader of Pillow raises what it likes at what it does not understand
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return f"{path} ({reason.replace(f' {str(path)!r}', '')})"


def pixels_of(path: Path, conversion: Conversion) -> Pixels:
    """A picture turned as its camera says, over the background where it is transparent, at the size asked for.

    The first one of an animation. 12 and 16 bits are scaled to 8. Raises: as Pillow does; InputError as `convert`.
    """
    with Image.open(path, formats=FORMATS) as opened:
        opened.load()
        try:
            image = ImageOps.exif_transpose(opened)
        except Exception:  # what the camera wrote beside the pixels is damaged, and they are not
            image = opened.copy()
    values, clear = np.asarray(image), image.info.get("transparency")
    bits = getattr(opened, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]
    unbounded = image.mode == "I" and (opened.format == "TIFF" or values.min() < 0 or values.max() >= 2**16)
    if image.mode == "F" or unbounded:
        raise ValueError("its numbers have no range that is known; convert it to 8 or 16 bits")
    if isinstance(clear, tuple) and max(clear) > 255:
        raise ValueError("one of its colours of 16 bits is transparent; give it an alpha channel")
    if image.mode.startswith("I"):
        image = Image.fromarray((values * 255.0 / (2**bits - 1)).round().astype(np.uint8))
        if isinstance(clear, int):  # the value that is transparent
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        behind = Image.new("RGBA", image.size, conversion.background)
        image = Image.alpha_composite(behind, image.convert("RGBA"))
    image = image.convert("L" if conversion.channels == "grey" else "RGB")
    form = f"{path}: {image.height} × {image.width} pixels"
    if conversion.size:
        height, width = conversion.size
        if conversion.fit == "pad" and min(width / image.width, height / image.height) * min(image.size) <= 0.5:
            raise InputError(f"{form} would shrink to a line; set prepare_data.fit to crop or stretch, or remove it")
        image = FITS[conversion.fit](image, (width, height), conversion.background)
    if max(image.size) > LARGEST_SIDE:
        raise InputError(
            f"{form} are more than {LARGEST_SIDE} a side; set prepare_data.size, to which all are brought, or remove it"
        )
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    grey = conversion.channels == "auto" and (pixels == pixels[..., :1]).all()
    return np.ascontiguousarray(pixels[..., :1]) if grey else pixels


def stacked(pictures: list[Pixels], paths: list[Path]) -> Pixels:
    """Pictures (H, W, 1 or 3) → (N, C, H, W): grey where all are. Raises: InputError for different sizes."""
    first = pictures[0].shape[:2]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape[:2] != first:
            sizes = f"{path} is {_size(picture)}, but {paths[0]} is {_size(pictures[0])}"
            raise InputError(f"{sizes} (height × width); set prepare_data.size, to which all are brought")
    channels = max(picture.shape[2] for picture in pictures)
    return np.stack([np.broadcast_to(picture, (*first, channels)) for picture in pictures]).transpose(0, 3, 1, 2)


def _size(picture: Pixels) -> str:
    return f"{picture.shape[0]} × {picture.shape[1]}"
