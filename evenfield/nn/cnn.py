"""A small convolutional network for the CPU: what the demo and the tests train in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Stages of convolution 3x3 with stride 2, BatchNorm and ReLU, then the mean over the map.

    Every stage halves the side, so that most of the work is done on small maps: with the default
    widths and 5 channels 186,000 parameters and 12 million multiplications for 64 x 64 pixels.

    Args:
        channels: Number of image channels.
        widths: Number of maps of each stage; the last one is the number of features.
    """

    places: ClassVar[dict[str, str]] = {
        "stem": "stages.0",
        **{str(stage): f"stages.{stage}" for stage in (1, 2, 3)},
    }

    def __init__(self, channels: int, widths: Sequence[int] = (32, 64, 96, 128)) -> None:
        super().__init__()
        self.num_features = widths[-1]
        stages = [
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            )
            for before, after in zip([channels, *widths], widths, strict=False)
        ]
        self.stages = nn.Sequential(*stages)

    def forward(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of normalised images with sides of 16 pixels or more."""
        return self.stages(image).mean((2, 3))
