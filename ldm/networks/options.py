"""The sizes of all networks: a choice checks its options, and returns what builds the network for a shape.

`networks.build("unet", {"width": 48})((2, 7, 7), classes=10)` is a U-Net for latents (2, 7, 7) of ten classes.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field

from ldm import networks as layers
from ldm.config import MOST, Count, Rate, Registry
from ldm.errors import InputError
from ldm.lazy import Module

# (shape) → a module, or (shape, classes=0) for a network that takes classes; shape is that of a sample, (C, H, W)
Build = Callable[..., Module]
Sizes = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]
Fit = Annotated[int | None, Field(ge=1, le=1024)]  # null is what fits the shape
Even = Annotated[int, Field(ge=2, le=MOST, multiple_of=2)]
EvenFrom4 = Annotated[int, Field(ge=4, le=MOST, multiple_of=2)]
Eights = Annotated[int, Field(ge=8, le=MOST, multiple_of=8)]
FEATURES = 128  # width of the classifiers' features

networks: Registry[Build] = Registry("networks")  # F = network(x_t, t[, labels])
autoencoders: Registry[Callable[..., Any]] = Registry("autoencoders")  # (shape) → an `autoencoder.Autoencoder`
classifiers: Registry[Build] = Registry("classifiers")  # the body, up to the features


@networks.register
def unet(
    *,
    patch: Count = 1,
    width: Count = 128,
    multipliers: Sizes = (1, 2, 2, 2),
    block: Literal["resnet", "convnext"] = "resnet",
    blocks: Count = 2,
    attention: Literal["none", "linear"] = "none",
    resampling: Literal["learned", "fixed"] = "learned",
    embedding: EvenFrom4 = 512,
    class_images: bool = False,
    norm: Literal["group", "layer"] = "group",
    groups: Count = 32,
    heads: Count = 1,
    dropout: Rate = 0.0,
) -> Build:
    """A U-Net conditioned on time and on classes.

    Width, multipliers and blocks are those of DDPM for CIFAR-10, which attends at 16 × 16 too (Ho et al. 2020,
    arXiv:2006.11239, appendix B).

    patch: side of the squares of the input that become channels at once; must divide height and width
    width: channels that the multipliers multiply
    multipliers: channels over width at each resolution, from the finest; each further one halves the grid
    block: residual block
    blocks: residual blocks at a resolution on the way down; one more on the way up
    attention: attention after each block; the middle always has full self-attention
    resampling: between resolutions, convolutions (learned), or averages and repetition alone (fixed)
    embedding: width of the time embedding
    class_images: give each class an image of its own, learned, which is added behind the first convolution
    norm: group norm, with weights; or layer norm over the channels of each place, without weights, which is faster
    groups: groups of the group norm; must divide the channels at every resolution
    heads: attention heads; must divide the channels at every resolution that has attention
    dropout: dropout rate inside the residual blocks
    """
    options = SimpleNamespace(**locals())
    channels = [width * multiplier for multiplier in multipliers]
    for multiplier, count in zip(multipliers, channels, strict=True):
        if norm == "group" and count % groups:
            size = f"width {width} times the multiplier {multiplier} gives {count} channels"
            raise InputError(f"{size}, not a multiple of {groups} groups")
    for count in channels if attention == "linear" else channels[-1:]:
        if count % heads:
            raise InputError(f"heads {heads} do not divide the {count} channels of a resolution with attention")
    return partial(layers.unet.UNet, options=options)


@networks.register
def conv_unet(*, channels: Sizes = (32, 64), blocks: Count = 2, embedding: EvenFrom4 = 16) -> Build:
    """The tutorial's U-Net: convolution, instance norm, leaky ReLU; each block adds a map of the time embedding.

    channels: channels at each resolution, from the finest; each further one halves the grid
    blocks: blocks at a resolution, on the way down and on the way up
    embedding: width of the time embedding
    """
    return partial(layers.conv_unet.ConvUNet, channels=channels, blocks=blocks, embedding=embedding)


@networks.register
def mlp(*, width: Count = 128, depth: Count = 3, embedding: Even = 32, experts: Count = 1) -> Build:
    """A multilayer perceptron for points (d, 1, 1): one for all noise levels, or one for each.

    width: hidden units of a layer
    depth: hidden layers
    embedding: width of the time embedding
    experts: number of perceptrons, each for an equal part of the times (0, 1]; as many as a chain is long make one for
      each noise level
    """
    return partial(layers.mlp.MLP, width=width, depth=depth, embedding=embedding, experts=experts)


@autoencoders.register
def conv_vae(
    *, patch: Fit = None, latent_channels: Fit = None, width: Eights = 64, blocks: Count = 1, smoothing: Count = 8
) -> Build:
    """A convolutional autoencoder whose patches of pixels become channels at once: 28 × 28 pixels are a 7 × 7 grid.

    So all the work is done on the small grid.

    patch: pixels a side of a patch; null is 4, doubled until the grid has at most 12 places a side
    latent_channels: channels of the latent grid; null is 2 for grey and 4 for colour, times the pixels of a patch / 16
    width: channels of the convolutions on the latent grid
    blocks: residual blocks of the encoder, and of the decoder
    smoothing: channels at full resolution, of which the last convolution makes the image
    """
    return partial(layers.autoencoder.ConvVAE, options=SimpleNamespace(**locals()))


@classifiers.register
def conv(*, width: Count = 16) -> Build:
    """Five convolutions, flattened, and a dense layer.

    width: channels of the first convolution
    """
    return partial(layers.classifier.conv_body, width=width)


@classifiers.register
def residual(*, width: Count = 32, blocks: Count = 1) -> Build:
    """A pre-activation residual network (He et al. 2016, arXiv:1603.05027), whose features are averaged over the grid.

    width: channels of the first grid, which is half as fine as the image; the second has twice as many
    blocks: residual blocks of each of the two grids
    """
    return partial(layers.classifier.residual_body, width=width, blocks=blocks)
