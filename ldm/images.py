"""Images as bytes and as pictures: uint8 ↔ [0, 1], PNG grids and GIF animations."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.errors import InputError
from ldm.lazy import Tensor, torch, torchvision

LARGEST_SIDE = 512  # pixels a side, beyond which no network here can learn
MOST_OF_GIF = 65_535  # pixels a side, and hundredths of a second of a frame


def from_uint8(images: Tensor) -> Tensor:
    """uint8 → float32 in [0, 1]."""
    return images.float() / 255


def to_uint8(x: Tensor) -> Tensor:
    """[0, 1] → uint8, rounded to the nearest; values outside are clipped."""
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


def groups_of_equals(images: Tensor) -> Tensor:
    """For each image (n, C, H, W), uint8, the index of the first one that equals it in every pixel, (n,)."""
    first: dict[bytes, int] = {}
    return torch.tensor([first.setdefault(image.numpy().tobytes(), index) for index, image in enumerate(images)])


def duplicates(images: Tensor, known: Tensor) -> Tensor:
    """Which of the images (n, C, H, W) are equal in every pixel to one of the known ones, uint8: (n,) booleans."""
    return groups_of_equals(torch.cat([known, images]))[len(known) :] < len(known)


def tile(images: Tensor, columns: int, gap: int = 2) -> NDArray[np.uint8]:
    """Lay uint8 images (N, C, H, W) out in rows on white: an array (height, width), or (height, width, 3) in colour."""
    grid = torchvision.utils.make_grid(images, columns, padding=gap, pad_value=255).permute(1, 2, 0).cpu().numpy()
    return grid[..., 0] if images.shape[1] == 1 else grid


def png(canvas: NDArray[np.uint8], scale: int = 2) -> bytes:
    """A PNG file in which each pixel is enlarged `scale` times."""
    return _encode([canvas], scale, "PNG")


def gif(frames: list[NDArray[np.uint8]], milliseconds: int, hold: int, scale: int = 2) -> bytes:
    """An endless GIF animation: each frame is shown for so many milliseconds, and the last one for `hold`.

    Frames in colour share a palette of white and the 255 best colours. Raises: InputError for frames that are too large
    for the format, or last too long.
    """
    lasts = milliseconds * (len(frames) - 1) + hold  # Pillow makes one frame of equal ones, which lasts as long as all
    if lasts > 10 * MOST_OF_GIF:
        raise InputError(f"an animation of {lasts / 1000:.0f} s is longer than a GIF's frame can be; show fewer states")
    if max(frames[0].shape[:2]) * scale > MOST_OF_GIF:
        sizes = " × ".join(str(side * scale) for side in frames[0].shape[:2])
        raise InputError(f"an animation of {sizes} pixels is more than a GIF's {MOST_OF_GIF} a side; show fewer images")
    return _encode(frames, scale, "GIF", duration=[milliseconds] * (len(frames) - 1) + [hold], loop=0)


def _in_colours_of(palette: Image.Image, image: Image.Image) -> Image.Image:
    """The image in a palette whose last colour is white.

    Pillow compares the upper bits of colours alone, and would give white pixels another colour near white.
    """
    indices = np.array(image.quantize(palette=palette, dither=Image.Dither.NONE))
    indices[(np.asarray(image) == 255).all(2)] = 255
    result = Image.fromarray(indices, "P")
    result.putpalette(palette.getpalette() or [])
    return result


def _encode(frames: list[NDArray[np.uint8]], scale: int, form: str, **options: object) -> bytes:
    images = [Image.fromarray(f.repeat(scale, 0).repeat(scale, 1)) for f in frames]
    if form == "GIF" and images[0].mode == "RGB":
        palette = Image.fromarray(np.concatenate(frames)).quantize(255)
        colours = (palette.getpalette() or [])[: 3 * 255]
        palette.putpalette([*colours, *bytes(3 * 255 - len(colours)), 255, 255, 255])  # white is number 255
        images = [_in_colours_of(palette, image) for image in images]
    first, *rest = images
    buffer = io.BytesIO()
    first.save(buffer, form, save_all=form == "GIF", append_images=rest, **options)
    return buffer.getvalue()
