"""Copies of training images: is an image nearer to one of them than the crowd around it explains?"""

from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, rotate

from ldm.errors import InputError
from ldm.images import groups_of_equals

SHIFTS = [(0, 1), (0, -1), (1, 0), (-1, 0)]  # rows and columns, in pixels
ANGLES = [5.0, -5.0]  # degrees
ROUNDING = 1e-5  # of an image's squared norm: squared distances below it are 0 but for the rounding of float32


class Nearness(NamedTuple):
    """Of each image: its score (n,), and the index of its nearest training image (n,)."""

    score: Tensor
    nearest: Tensor


class Search:
    """Finds the training images nearest to others, whether shifted by a pixel or turned by 5°."""

    def __init__(self, train: Tensor, neighbours: int) -> None:
        """train: uint8 (N, C, H, W); neighbours: of them, the nearest, whose distances make the score.

        An image that stands in them several times is taken once. Raises: InputError for fewer than two images.
        """
        self.indices = groups_of_equals(train.cpu()).unique()
        if len(self.indices) < 2:
            raise InputError("training images that are all the same have no neighbours to compare with")
        self.background = background(train)
        self.train = points(train[self.indices] - self.background)
        self.neighbours = min(neighbours, len(self.indices))
        self.squares = self.train.square().sum(1)

    def __call__(self, images: Tensor, batch_size: int = 250) -> Nearness:
        """The distance of each image, uint8 (n, C, H, W), to its nearest training image over the mean of its next ones.

        A distance is the smallest of those of the image as it is, shifted and turned. The ratio to the next ones is
        that of Carlini et al. 2023, arXiv:2301.13188, section 5.1; it is 0 for a copy, even of an image that the
        training images have many times, and about 1 far from all of them.
        """
        if not len(images):
            return Nearness(torch.zeros(0), torch.zeros(0, dtype=torch.long))
        batches = [self._batch(batch) for batch in images.split(batch_size)]
        return Nearness(*(torch.cat(parts) for parts in zip(*batches, strict=True)))

    def _batch(self, images: Tensor) -> Nearness:
        least = torch.full((len(images), len(self.train)), torch.inf, device=self.train.device)
        images = images.to(self.train.device) - self.background  # no distance changes, and 0 is what a view lets in
        for view in views(images):
            x = points(view)
            squared = torch.addmm(self.squares, x, self.train.T, alpha=-2) + x.square().sum(1, keepdim=True)
            least = torch.minimum(least, squared)
        values, indices = least.topk(self.neighbours, largest=False)
        equal = values < ROUNDING * points(images).square().sum(1, keepdim=True)
        distances = values.masked_fill(equal, 0).sqrt()
        crowd = distances[:, 1:].mean(1)
        score = torch.where(crowd > 0, distances[:, 0] / crowd, torch.zeros_like(crowd))
        return Nearness(score.cpu(), self.indices[indices[:, 0].cpu()])


def background(images: Tensor) -> Tensor:
    """What lies around the things in images, uint8 (n, C, H, W): the median of the outermost pixels, float32 (C, 1, 1).

    It is what a shift or a turn lets in: black for the digits, white for icons on white.
    """
    edges = [images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1]]
    pixels = torch.cat(edges, -1).transpose(0, 1).flatten(1).cpu()  # a GPU has no deterministic median
    return pixels.median(1).values.float()[:, None, None].to(images.device)


def points(images: Tensor) -> Tensor:
    """Means of 2 × 2 pixels as coordinates: pixels (n, C, H, W) in units of 1/255 → float32 (n, d) in units of 1."""
    return nnf.avg_pool2d(images.float() / 255, 2, ceil_mode=True).flatten(1)


def views(images: Tensor) -> list[Tensor]:
    """Images (n, C, H, W) as they are, shifted by a pixel, and turned by 5°; what comes in from outside is 0."""
    return [images, *(shifted(images, *shift) for shift in SHIFTS), *(turned(images, angle) for angle in ANGLES)]


def shifted(images: Tensor, rows: int, columns: int) -> Tensor:
    """Images (n, C, H, W) moved down and to the right by whole pixels, 0 where nothing is."""
    return nnf.pad(images, [columns, -columns, rows, -rows])  # a padding below 0 cuts off


def turned(images: Tensor, angle: float) -> Tensor:
    """Images (n, C, H, W) turned about their centre by an angle in degrees, 0 where nothing is."""
    return rotate(images.float(), angle, InterpolationMode.BILINEAR) if len(images) else images.float()


def thresholds(score: Tensor, classes: Tensor, count: int, share: float) -> Tensor:
    """The score at or below which an image of a class passes for a copy, (count,): the `share` quantile of real ones.

    score, classes: (n,) of real images that are no copies. A class without any takes 0, which finds exact copies alone.
    """
    own = [score[classes == label] for label in range(count)]
    return torch.stack([x.quantile(share) if len(x) else x.new_zeros(()) for x in own])
