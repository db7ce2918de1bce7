"""The layers of the residual body."""

from torch import Tensor, nn

from ldm.classifier import FEATURES


def body(in_channels: int, width: int, blocks: int) -> nn.Sequential:
    """(B, C, H, W) → (B, 128), without a dense layer: channels, averaged over the grid."""
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        nn.Conv2d(4 * in_channels, width, 3, padding=1, bias=False),
        *(Residual(width) for _ in range(blocks)),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        *(Residual(2 * width) for _ in range(blocks)),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Conv2d(2 * width, FEATURES, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(FEATURES),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class Residual(nn.Sequential):
    """x + conv(act(conv(act(x)))): (B, C, h, w) → (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        def part() -> list[nn.Module]:
            return [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False)]

        super().__init__(*part(), *part())

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)
