"""The noise of samples: Philox by its published answers, and the normal numbers made of it, one by one."""

import math

import numpy as np
import pytest
import torch

from ldm.sampling import Streams
from ldm.sampling.noise import philox

# counter, key, answer: those of Random123's own tests (kat_vectors, philox 4x32 10)
ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), ANSWERS)
def test_philox_gives_the_published_answers(counter, key, answer):
    words = philox([torch.tensor([word]) for word in counter], key)
    assert [word.item() for word in words] == list(answer)


def normal(seed: int, index: int, draw: int, element: int) -> float:
    """One number, from the module's docstring alone."""
    counter = (element // 4, draw, index % 2**32, index // 2**32)
    words = philox([torch.tensor(word) for word in counter], (seed % 2**32, seed // 2**32))
    u = [(int(word) + 0.5) / 2**32 for word in words]
    a, b = (u[0], u[1]) if element % 4 < 2 else (u[2], u[3])
    wave = math.cos if element % 2 == 0 else math.sin
    return math.sqrt(-2 * math.log(a)) * wave(2 * math.pi * b)


@pytest.mark.parametrize("seed", [0, 5, 2**40 + 3, 2**63 - 1])
def test_a_stream_is_what_the_docstring_says(seed):
    indices = [0, 7, 2**33 + 1]
    streams = Streams(seed, indices, (3, 2))
    for draw in range(3):
        expected = [[normal(seed, index, draw, element) for element in range(6)] for index in indices]
        found = streams()
        assert found.dtype == torch.float64
        torch.testing.assert_close(
            found.flatten(1), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )


def test_the_numbers_are_standard_normal_and_independent():
    """200,000 numbers; each bound is five deviations of what it bounds."""
    streams = Streams(1, range(1000), (100,))
    x = torch.stack([streams(), streams()]).numpy()  # (draws, samples, elements)
    n = x.size
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs((x**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / n)
    for a, b in ((x[0], x[1]), (x[:, 1:], x[:, :-1]), (x[..., 1:], x[..., :-1])):  # draws, samples, elements
        assert abs((a * b).mean()) < 5 / math.sqrt(a.size)
    assert len(np.unique(x)) == n


def test_seeds_have_nothing_in_common():
    a, b = (Streams(seed, range(500), (100,))() for seed in (0, 1))
    assert abs((a * b).mean()) < 5 / math.sqrt(a.numel())
