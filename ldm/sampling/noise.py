"""The noise of samples by a counter-based generator: each number is a function of seed, sample, draw and element.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") maps a counter of four 32-bit words,
under a key of two, to four random words w0 … w3. Here

    key     = (seed mod 2³², seed div 2³²)
    counter = (block, draw, index mod 2³², index div 2³²)

where index is the sample's number, and draw counts the draws of a stream, from 0. The standard normal numbers 4 block
to 4 block + 3 of a draw are those of Box & Muller (1958), with u_i = (w_i + ½) / 2³²:

    √(−2 ln u0) cos 2π u1,  √(−2 ln u0) sin 2π u1,  √(−2 ln u2) cos 2π u3,  √(−2 ln u2) sin 2π u3

CPU and GPU agree to the rounding of float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from typing import Any

from ldm.lazy import Tensor, torch

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # what the key grows by after a round
WORD = 0xFFFFFFFF


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Four random words, as int64 tensors, of four words of a counter, int64 tensors that broadcast together."""
    x0, x1, x2, x3 = counter
    for number in range(ROUNDS):
        k0, k1 = ((word + number * step) & WORD for word, step in zip(key, WEYL, strict=True))
        # the product of two words may overflow int64, which leaves its 64 bits right; the mask takes the sign off
        a, b = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0, x1, x2, x3 = (b >> 32 & WORD) ^ x1 ^ k0, b & WORD, (a >> 32 & WORD) ^ x3 ^ k1, a & WORD
    return [x0, x1, x2, x3]


class Streams:
    """One random stream per sample, from (seed, index): the batch never changes a sample.

    Each call returns the next standard normal draw of every stream, (B, *shape) in float64.
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: Sequence[int], device: Any = "cpu") -> None:
        self._key = seed & WORD, seed >> 32
        self._indices = torch.tensor(list(indices), device=device)[:, None]
        self._blocks = torch.arange(-(-math.prod(shape) // 4), device=device)
        self._shape, self._draw = tuple(shape), 0

    def of(self, chosen: Tensor) -> Streams:
        """The streams of the chosen samples, (B,) bool; their next draw is the one that would have come next here."""
        streams = copy(self)
        streams._indices = self._indices[chosen]
        return streams

    def __call__(self) -> Tensor:
        u0, u1, u2, u3 = self._uniform(self._blocks)
        pairs = [((-2 * a.log()).sqrt(), 2 * math.pi * b) for a, b in ((u0, u1), (u2, u3))]
        normal = torch.stack([radius * wave for radius, angle in pairs for wave in (angle.cos(), angle.sin())], -1)
        return normal.flatten(1)[:, : math.prod(self._shape)].reshape(-1, *self._shape)

    def _uniform(self, blocks: Tensor) -> list[Tensor]:
        """The four uniform numbers in (0, 1) of each block of the next draw, each (B, blocks) in float64."""
        draw, self._draw = torch.full_like(blocks, self._draw), self._draw + 1
        words = philox([blocks, draw, self._indices & WORD, self._indices >> 32], self._key)
        return [(word.double() + 0.5) / 2**32 for word in words]
