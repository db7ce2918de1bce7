"""Images as bytes and as pictures."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from ldm import InputError
from ldm.images import from_uint8, gif, groups_of_equals, to_uint8


def test_pixels_round_trip():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(values)), values)
    assert to_uint8(torch.tensor([-0.2, 1.7, 0.5])).tolist() == [0, 255, 128]


def test_an_animation_in_colour_has_one_palette_and_keeps_white_white():
    """Frames of many colours each, which palettes of their own would show in different ones."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)  # the same in every frame
    frames = []
    for i in range(6):
        moving = np.full((20, 20, 3), 40 * i, np.uint8)
        white = np.full((20, 4, 3), 255, np.uint8)
        frames.append(np.concatenate([still, white, moving], 1))
    with Image.open(io.BytesIO(gif(frames, 100, 1000, scale=1))) as animation:
        shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]
    assert len(shown) == 6
    for frame, own in zip(shown, frames, strict=True):
        assert (frame[:, 20:24] == 255).all()
        assert np.array_equal(frame[:, :20], shown[0][:, :20])
        assert np.abs(frame.astype(int) - own).mean() < 12


def test_white_stays_white_beside_colours_that_are_nearly_white():
    frames = [np.full((8, 8, 3), value, np.uint8) for value in (255, 253, 250)]
    frames[1][:, :4] = 255
    with Image.open(io.BytesIO(gif(frames, 100, 1000, scale=1))) as animation:
        shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]
    assert (shown[0] == 255).all()
    assert (shown[1][:, :4] == 255).all()


def test_groups_of_equal_images():
    images = torch.tensor([[3, 1], [2, 2], [3, 1], [3, 1], [2, 2]], dtype=torch.uint8).view(5, 1, 1, 2)
    assert groups_of_equals(images).tolist() == [0, 1, 0, 0, 1]


def test_an_animation_may_have_one_frame():
    frame = np.full((2, 2), 200, np.uint8)
    with Image.open(io.BytesIO(gif([frame], 100, 1000, scale=1))) as animation:
        assert (np.asarray(animation.convert("L")) == 200).all()


def test_an_animation_larger_than_a_gif_can_be_is_refused():
    with pytest.raises(InputError, match="an animation of 2 × 65536 pixels is more than a GIF's 65535 a side; show"):
        gif([np.zeros((1, 32768), np.uint8)] * 2, 100, 1000)
    gif([np.zeros((2, 2), np.uint8)] * 65, 10_000, 10_000)  # equal frames become one
    with pytest.raises(InputError, match="an animation of 660 s is longer than a GIF's frame can be; show fewer st"):
        gif([np.zeros((2, 2), np.uint8)] * 66, 10_000, 10_000)
