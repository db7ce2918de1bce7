"""Images as bytes: uint8 ↔ [0, 1]."""

import torch

from ldm.images import from_uint8, to_uint8


def test_pixels_round_trip():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(values)), values)
    assert to_uint8(torch.tensor([-0.2, 1.7, 0.5])).tolist() == [0, 255, 128]
