"""Folders of pictures as people have them: what is read, how it is converted, what is left out, what is refused."""

import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data import image_folder
from ldm.data.image_folder import Conversion, convert, find, pixels_of, stacked
from ldm.errors import InputError


def save(path: Path, size: tuple[int, int] = (6, 4), mode: str = "L", colour: object = 40, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """Two classes of two pictures."""
    for name in ("oak", "ash"):
        for i in range(2):
            save(tmp_path / "leaves" / name / f"{i}.png", colour=40 * i)
    return tmp_path / "leaves"


def test_classes_are_sorted_as_people_sort(tmp_path):
    names = ["10", "9", "2b", "Birke", "ahorn", "2a", "桜", "$x$"]
    for name in names:
        save(tmp_path / name / "1.png")
    found = find(tmp_path)
    assert found.names == ["2a", "2b", "9", "10", "$x$", "ahorn", "Birke", "桜"]
    assert [found.names[label] for label in found.labels] == [path.parent.name for path in found.paths]


def test_nested_pictures_count_and_what_is_left_out_is_said(root):
    save(root / "oak/autumn/wet/a.JPG", mode="RGB", colour="red")
    save(root / "oak/._0.png")
    save(root / "__MACOSX/oak/._0.png")
    save(root / ".cache/0.png")
    save(root / "stray.png")
    (root / "ash/notes.txt").write_text("x")
    (root / "oak/Thumbs.db").write_bytes(b"x")
    os.mkfifo(root / "oak/pipe.png")  # which would be waited for
    found = find(root)
    assert sorted(str(path.relative_to(root)) for path in found.paths) == [
        "ash/0.png", "ash/1.png", "oak/0.png", "oak/1.png", "oak/autumn/wet/a.JPG",
    ]  # fmt: skip
    assert sum(found.labels) == 3  # of oak
    hidden, beside, others = found.left_out
    assert hidden.startswith("3 hidden (")  # the two folders at the top count as one thing each
    assert beside == "1 beside the class folders (stray.png)"
    assert others == "3 no pictures by their names, or no files (ash/notes.txt, oak/Thumbs.db, oak/pipe.png)"


def test_links_are_followed_but_not_in_circles(root, tmp_path):
    save(tmp_path / "elsewhere/x.png")
    (root / "oak/more").symlink_to(tmp_path / "elsewhere")
    assert len(find(root).paths) == 5
    (tmp_path / "elsewhere/back").symlink_to(root / "ash")  # no circle: it leads to a folder that it is not in
    assert len(find(root).paths) == 7
    (root / "ash/round").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"is a link to .*, in which it lies itself; remove it"):
        find(root)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: os.rename(root, root.with_name("gone")), "leaves is not a folder"),
        (
            lambda root: os.rename(root / "ash", root.parent / "ash"),
            "leaves has one sub-folder, and at least 2 are wanted: .*; name .*leaves/oak if its own sub-folders are",
        ),
    ],
)
def test_folders_that_are_refused(root, spoil, words):
    spoil(root)
    with pytest.raises(InputError, match=words):
        find(root)


def test_pictures_without_sub_folders_are_told_why(tmp_path):
    save(tmp_path / "pics/1.png")
    with pytest.raises(InputError, match="has no sub-folders: each sub-folder is a class, by which") as caught:
        find(tmp_path / "pics")
    assert "/oak/1.png" in str(caught.value)


GRADIENT = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif", "webp", "jp2", "ppm"])
def test_what_pillow_opens(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(GRADIENT).save(tmp_path / f"x.{suffix}", **options)
    found = pixels_of(tmp_path / f"x.{suffix}", Conversion())
    assert found.shape == (4, 6, 1)  # grey, also where the file has a palette, or three equal channels
    assert np.array_equal(found[..., 0], GRADIENT)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, [255]),
        ("L", 77, [77]),
        ("LA", (10, 0), [255]),  # transparent, over white
        ("LA", (10, 255), [10]),
        ("I;16", 0x8000, [128]),  # scaled, not cut
        ("I;16", 300, [1]),
        ("P", 0, [10, 20, 30]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBA", (200, 0, 0, 0), [255]),
        ("RGBA", (0, 0, 0, 128), [127]),
        ("RGBA", (200, 0, 0, 255), [200, 0, 0]),
    ],
)
def test_modes(tmp_path, mode, colour, expected):
    image = Image.new(mode, (3, 2), colour)
    if mode == "P":
        image.putpalette([10, 20, 30])
    image.save(tmp_path / "x.png")
    found = pixels_of(tmp_path / "x.png", Conversion())
    assert found.shape == (2, 3, len(expected))
    assert found[0, 0].tolist() == expected


def test_a_palette_with_transparency_and_cmyk_and_floats(tmp_path):
    image = Image.new("P", (3, 2), 0)
    image.putpalette([10, 20, 30])
    image.save(tmp_path / "x.png", transparency=0)
    assert pixels_of(tmp_path / "x.png", Conversion(background="#010203"))[0, 0].tolist() == [1, 2, 3]
    Image.new("CMYK", (3, 2), (0, 0, 0, 0)).save(tmp_path / "x.jpg")
    assert pixels_of(tmp_path / "x.jpg", Conversion()).min() >= 250
    Image.new("F", (3, 2), 0.5).save(tmp_path / "x.tif")
    (reason,) = convert([tmp_path / "x.tif"], Conversion())
    assert (
        reason
        == f"{tmp_path / 'x.tif'} (ValueError: its numbers have no range that is known; convert it to 8 or 16 bits)"
    )


def test_pictures_are_turned_as_the_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    Image.fromarray(GRADIENT).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(pixels_of(tmp_path / "x.png", Conversion())[..., 0], np.rot90(GRADIENT, -1))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_is_read_though_what_the_camera_says_is_damaged(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(GRADIENT).save(path, exif=b"Exif\0\0no TIFF header", quality=100, dpi=(72, 72))
    found = pixels_of(path, Conversion())[..., 0].astype(int)
    assert np.abs(found - GRADIENT).max() <= (2 if suffix == "jpg" else 0)


def test_the_bits_of_a_tiff_file_are_its_scale(tmp_path):
    """Of 12 bits as cameras for science have them; of signed numbers and of 32 bits nobody knows the range."""
    Image.fromarray(np.full((2, 4), 2048, np.uint16)).save(tmp_path / "sixteen.tif")
    assert pixels_of(tmp_path / "sixteen.tif", Conversion())[..., 0].tolist() == [[8] * 4] * 2
    packed = bytes([0x80, 0x08, 0x00] * 4)  # 2,048 eight times, in 12 bits each
    entries = {256: 4, 257: 2, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 2, 279: len(packed)}
    fields = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries.items())
    header = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries)) + fields + bytes(4)
    assert len(header) <= 122
    (tmp_path / "twelve.tif").write_bytes(header.ljust(122, b"\0") + packed)
    assert pixels_of(tmp_path / "twelve.tif", Conversion())[..., 0].tolist() == [[128] * 4] * 2
    Image.fromarray(np.full((2, 4), 200, np.int32)).save(tmp_path / "many.tif")
    with pytest.raises(ValueError, match="no range that is known"):
        pixels_of(tmp_path / "many.tif", Conversion())


@pytest.mark.parametrize("size", [(32, 16), (5, 7)])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_sizes(tmp_path, fit, size):
    """A red bar on blue, twice as wide as high."""
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (18, 0, 22, 20))
    image.save(tmp_path / "x.png")
    found = pixels_of(tmp_path / "x.png", Conversion(size, fit, background="lime"))
    assert found.shape == (*size, 3)
    lime = (found == [0, 255, 0]).all(2).any()
    assert lime == (fit == "pad")
    red = (found[size[0] // 2, :, 0] > 100).mean()  # the share of a row in the middle
    widths = {"stretch": 0.1, "pad": 0.1, "crop": 0.1 * 2 * size[0] / size[1]}
    assert red == pytest.approx(widths[fit], abs=1.2 / size[1])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P"])
def test_a_coloured_background_is_that_colour_behind_grey_too(tmp_path, mode):
    Image.new("LA", (4, 4), (9, 0)).convert(mode).save(tmp_path / "x.png")
    found = pixels_of(tmp_path / "x.png", Conversion((4, 8), "pad", background="red"))
    assert found[0, 0].tolist() == [255, 0, 0]
    grey = pixels_of(tmp_path / "x.png", Conversion((4, 8), "pad", channels="grey", background="red"))
    assert grey[0, 0].tolist() == [76]  # its luma


@pytest.mark.filterwarnings("ignore:IM image format is deprecated")
def test_sixteen_bits_with_a_transparent_value_and_thirty_two(tmp_path):
    values = np.array([[300, 40_000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png", transparency=300)
    assert pixels_of(tmp_path / "x.png", Conversion())[..., 0].tolist() == [[255, 156]]
    for value in (-1, 100_000):
        for name in ("x.tif", "x.im"):
            Image.fromarray(np.array([[0, value]], np.int32)).save(tmp_path / name)
            with pytest.raises(ValueError, match="no range that is known"):
                pixels_of(tmp_path / name, Conversion())


def test_no_other_program_is_started(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the name of the file."""
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (reason,) = convert([tmp_path / "a.png"], Conversion())
    assert "cannot identify image file" in reason
    save(tmp_path / "x/a.png")
    save(tmp_path / "y/a.png")
    (tmp_path / "x/clip.mpg").write_bytes(b"\0\0\1\xba")
    assert find(tmp_path).left_out[-1] == "1 no pictures by their names, or no files (x/clip.mpg)"


def test_a_name_that_is_no_utf8(tmp_path):
    save(tmp_path / "a/1.png")
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(InputError, match=r"the name of the folder caf\? is no UTF-8; rename it"):
        find(tmp_path)


def test_sizes_that_leave_nothing(tmp_path):
    save(tmp_path / "thin/64.png", (64, 1))
    with pytest.raises(InputError, match=r"thin/64.png: 1 × 64 pixels would shrink to a line; set prepare_data.fit"):
        list(convert([tmp_path / "thin/64.png"], Conversion((32, 32), "pad")))
    for size in ((1, 1), (10_000, 10)):
        save(tmp_path / f"{size[0]}.png", size)
    for fit in ("crop", "stretch"):
        assert all(not isinstance(x, str) for x in convert(sorted(tmp_path.glob("*.png")), Conversion((32, 32), fit)))
    assert pixels_of(tmp_path / "1.png", Conversion((32, 32), "pad")).shape == (32, 32, 1)
    with pytest.raises(InputError, match=r"10 × 10000 pixels would shrink to a line; .* crop or stretch"):
        pixels_of(tmp_path / "10000.png", Conversion((32, 32), "pad"))
    with pytest.raises(InputError, match=r"10 × 10000 pixels are more than 512 a side; set prepare_data.size"):
        pixels_of(tmp_path / "10000.png", Conversion())


def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "1.png").write_text("text")
    cut = save(tmp_path / "2.png", (64, 64)).read_bytes()[:60]
    (tmp_path / "2.png").write_bytes(cut)
    (tmp_path / "3.png").symlink_to("nowhere")
    save(tmp_path / "4.png", (300, 300))
    save(tmp_path / "5.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)  # of which a bomb has more
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        *broken, good = convert([tmp_path / f"{i}.png" for i in range(6)], Conversion())
    assert good.shape == (4, 6, 1)
    for i, reason in enumerate(broken):
        assert reason.startswith(f"{tmp_path / str(i)}.png ("), reason
    assert "No such file" in broken[3]
    assert "decompression bomb" in broken[4]


def test_grey_among_colours_is_repeated_and_sizes_must_agree(tmp_path):
    grey, colour = np.full((2, 3, 1), 7, np.uint8), np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    paths = [Path("a.png"), Path("b.png")]
    both = stacked([grey, colour], paths)
    assert both.shape == (2, 3, 2, 3)
    assert (both[0] == 7).all()
    assert np.array_equal(both[1], colour.transpose(2, 0, 1))
    assert stacked([grey, grey], paths).shape == (2, 1, 2, 3)
    with pytest.raises(InputError, match=r"b.png is 3 × 2, but a.png is 2 × 3 .*; set prepare_data.size"):
        stacked([grey, grey.transpose(1, 0, 2)], paths)


def test_the_listing_is_torchvisions(root):
    """Where nothing is hidden, and no name has a number."""
    from torchvision.datasets import ImageFolder

    theirs = ImageFolder(str(root))
    found = find(root)
    assert (found.names, [(str(p), n) for p, n in zip(found.paths, found.labels, strict=True)]) == (
        theirs.classes,
        theirs.samples,
    )
    assert issubclass(image_folder.Folder, ImageFolder)
