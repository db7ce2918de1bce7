"""The layers of the U-Net (Ronneberger et al. 2015; Ho et al. 2020; Dhariwal & Nichol 2021, arXiv:2105.05233)."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ldm.errors import InputError

# positions up to which two products and a softmax are faster on a CPU than PyTorch's own kernel for attention
PLAIN = 256


class UNet(nn.Module):
    """F = network(x_t, t, labels): x_t (B, C, h, w) of unit variance, t (B,) in (0, 1]; returns (B, C, h, w).

    labels: (B,) whole numbers below `classes`, for a network of classes. The options are those of
    `ldm.networks.options.unet`.
    """

    def __init__(self, shape: Sequence[int], classes: int = 0, *, options: Any) -> None:
        """shape: (C, h, w); classes: 0 for none. Raises: InputError unless the patch divides h and w."""
        super().__init__()
        self.patch = options.patch
        if any(side % self.patch for side in shape[1:]):
            raise InputError(f"networks.unet.patch: {self.patch} does not divide the grid of {shape[1]} × {shape[2]}")
        channels = [options.width * multiplier for multiplier in options.multipliers]
        check_norm(shape, channels, options)
        first, last = channels[0], channels[-1]
        inner = shape[0] * self.patch**2
        self.embed = Embedding(options.embedding, classes)
        self.stem = nn.Conv2d(inner, first, 3, padding=1)
        grid = [side // self.patch for side in shape[1:]]
        self.class_images = ClassImages(classes, first, grid) if classes and options.class_images else None
        plain = partial(ResBlock if options.block == "resnet" else ConvNeXtBlock, options=options)

        def attended(c_in: int, c_out: int) -> nn.Module:
            return EmbedSequential([plain(c_in, c_out), LinearAttention(c_out, options)])

        block = attended if options.attention == "linear" else plain
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, size = [first], first
        for resolution, count in enumerate(channels):
            if resolution:
                self.down.append(Downsample(size, options))
                skips.append(size)
            for _ in range(options.blocks):
                self.down.append(block(size, count))
                size = count
                skips.append(size)
        self.middle = EmbedSequential([plain(last, last), Attention(last, options), plain(last, last)])
        for resolution, count in reversed(list(enumerate(channels))):
            for _ in range(options.blocks + 1):
                self.up.append(block(size + skips.pop(), count))
                size = count
            if resolution:
                self.up.append(Upsample(size, options))
        head = zero(nn.Conv2d(first, inner, 3, padding=1))
        self.head = nn.Sequential(norm(first, options), nn.SiLU(), head)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = self.embed(t, labels)  # (B, embedding)
        x = self.stem(nnf.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        if self.class_images is not None:
            x = x + self.class_images(labels).to(x.dtype)
        skips = [x]
        for module in self.down:
            x = module(x, emb)
            skips.append(x)
        x = self.middle(x, emb)
        for module in self.up:
            if isinstance(module, Upsample):
                x = module(x, skips[-1].shape[-2:])
            else:
                x = module(torch.cat([x, skips.pop()], 1), emb)
        return nnf.pixel_shuffle(self.head(x), self.patch)


def check_norm(shape: Sequence[int], channels: Sequence[int], options: Any) -> None:
    """Refuse shapes that have no norm. Raises: InputError where a group of the norm would be a single value.

    shape: (C, h, w) of a sample; channels: at each resolution.
    """
    for resolution, count in enumerate(channels):
        places = math.prod(math.ceil(side / options.patch / 2**resolution) for side in shape[1:])
        if options.norm == "group" and places == 1 and count == options.groups:
            problem = f"at resolution {resolution + 1} each of {count} groups is one channel at one place"
            raise InputError(f"networks.unet.groups: {problem}, which has no norm; use fewer groups or multipliers")


def norm(channels: int, options: Any) -> nn.Module:
    """The norm chosen: (B, C, h, w) → (B, C, h, w)."""
    return nn.GroupNorm(options.groups, channels) if options.norm == "group" else LayerNorm(channels)


class LayerNorm(nn.Module):
    """Zero mean and unit variance over the channels of each place, without weights (Ba et al. 2016, arXiv:1607.06450).

    In channels-last memory the channels of a place are neighbours. On a CPU in bf16, weights would take more time than
    the norm itself.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return nnf.layer_norm(x.permute(0, 2, 3, 1), (self.channels,)).permute(0, 3, 1, 2)


class EmbedSequential(nn.ModuleList):
    """Modules of (x, embedding), one after the other, each with the same embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for module in self:
            x = module(x, emb)
        return x


class Embedding(nn.Module):
    """Sines and cosines of 1000 t, a layer, a vector of the class added, a layer: (B,) → (B, width).

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """

    frequencies: Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        half = width // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.classes = nn.Embedding(classes, width) if classes else None

    def forward(self, t: Tensor, labels: Tensor | None) -> Tensor:
        angles = 1000 * t[:, None] * self.frequencies
        first, *rest = self.layers
        h = first(torch.cat([angles.cos(), angles.sin()], 1))
        if self.classes is not None:
            h = h + self.classes(labels)
        for layer in rest:
            h = layer(h)
        return h


class ClassImages(nn.Embedding):
    """An image of each class, learned and 0 at first: labels (B,) → (B, channels, h, w).

    Through the embedding alone a class can only scale and shift channels, alike at all places.
    """

    def __init__(self, classes: int, channels: int, grid: Sequence[int]) -> None:
        """grid: (h, w)."""
        super().__init__(classes, math.prod(grid) * channels)
        self.shape = *grid, channels
        nn.init.zeros_(self.weight)

    def forward(self, labels: Tensor) -> Tensor:
        return super().forward(labels).view(-1, *self.shape).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Two convolutions with the time embedding as scale and shift in between: (B, c_in, h, w) → (B, c_out, h, w)."""

    def __init__(self, c_in: int, c_out: int, options: Any) -> None:
        super().__init__()
        self.norm1 = norm(c_in, options)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.scale_shift = nn.Linear(options.embedding, 2 * c_out)
        self.norm2 = norm(c_out, options)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(nnf.silu(self.norm1(x)))
        scale, shift = self.scale_shift(emb)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.skip(x) + self.conv2(self.dropout(nnf.silu(h)))


class ConvNeXtBlock(nn.Module):
    """A depthwise 7 × 7 convolution, and a perceptron at each place; time scales and shifts the norm.

    Liu et al. 2022, arXiv:2201.03545. (B, c_in, h, w) → (B, c_out, h, w).
    """

    def __init__(self, c_in: int, c_out: int, options: Any) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c_in, c_in, 7, padding=3, groups=c_in)
        self.scale_shift = nn.Linear(options.embedding, 2 * c_in)
        self.norm = nn.GroupNorm(1, c_in)
        self.widen = nn.Conv2d(c_in, 4 * c_in, 1)
        self.dropout = nn.Dropout(options.dropout)
        self.narrow = zero(nn.Conv2d(4 * c_in, c_out, 1))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.scale_shift(emb)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.norm(self.depthwise(x)), 1 + scale)
        return self.skip(x) + self.narrow(self.dropout(nnf.gelu(self.widen(h))))


class Attention(nn.Module):
    """Self-attention over the grid's positions, (B, C, h, w) → (B, C, h, w)."""

    def __init__(self, channels: int, options: Any) -> None:
        super().__init__()
        self.heads = options.heads
        self.norm = norm(channels, options)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, -1)
        h = self.attend(*qkv.transpose(-1, -2).unbind(1))  # (B, heads, h·w, C / heads)
        return x + self.out(h.transpose(-1, -2).reshape(batch, channels, height, width))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values, (B, heads, h·w, C / heads) → the same shape."""
        if q.device.type == "cpu" and q.shape[-2] <= PLAIN:
            return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v
        return nnf.scaled_dot_product_attention(q, k, v)


class LinearAttention(Attention):
    """Attention at a cost linear in the number of positions (Shen et al. 2021, arXiv:1812.01243, Eq. 3)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q.softmax(-1) @ (k.softmax(-2).transpose(-1, -2) @ v)


class Downsample(nn.Module):
    """Halve the grid, rounding up: (B, C, h, w) → (B, C, ⌈h/2⌉, ⌈w/2⌉)."""

    def __init__(self, channels: int, options: Any) -> None:
        super().__init__()
        learned = options.resampling == "learned"
        self.conv = nn.Conv2d(channels, channels, 3, 2, 1) if learned else nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if x.shape[-1] > 1:
            return self.conv(x)
        # on CPUs the gradient of this convolution's weights in bf16 has parts that nothing has set, for a width of 1
        with torch.autocast(x.device.type, enabled=False):
            return self.conv(x.float())


class Upsample(nn.Module):
    """Grow the grid to a given size by repetition, then convolve where resampling is learned."""

    def __init__(self, channels: int, options: Any) -> None:
        super().__init__()
        learned = options.resampling == "learned"
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.conv(nnf.interpolate(x, size=tuple(size), mode="nearest"))


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Start a residual branch, or the output, at zero."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer
