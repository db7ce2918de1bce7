"""The layers of the convolutional body."""

from torch import nn

from ldm.classifier import FEATURES


def body(in_channels: int, width: int) -> nn.Sequential:
    """(B, C, H, W) → (B, 128), after a ReLU."""

    def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

    return nn.Sequential(
        *conv(in_channels, width, kernel=5, stride=2),
        *conv(width, width),
        *conv(width, 2 * width, stride=2),
        *conv(2 * width, 2 * width),
        *conv(2 * width, 4 * width, stride=2),
        nn.AdaptiveAvgPool2d(4),  # the size of the grid for 28 × 28 pixels
        nn.Flatten(),
        nn.Linear(64 * width, FEATURES),
        nn.ReLU(),
    )
