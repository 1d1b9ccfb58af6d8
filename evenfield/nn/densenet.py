"""Densely connected networks for any number of channels, with torchvision's names of parameters.

Huang et al., "Densely connected convolutional networks", CVPR 2017 (the DenseNet-BC of its section
3): every layer sees the maps of all layers before it in its block. DenseNet-121 is the network of
the public results on Camelyon17, DenseNet-161 that of the winner on RxRx1's full images.

There is no memory-saving variant that computes the concatenations again in the backward pass: it
would run every BatchNorm twice, and so count each batch twice in the running statistics.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.errors import InputError

SMALLEST_SIDE = 29
"""Below it the last block would be left without a map: 29, 15, 8, 4, 2, 1 pixels."""


class DenseLayer(nn.Module):
    """Norm, ReLU and a convolution 1x1 to 4 growths, then the same with 3x3 to one growth."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n g h w"]:
        """The new maps."""
        y = self.conv1(F.relu(self.norm1(x), inplace=True))
        return self.conv2(F.relu(self.norm2(y), inplace=True))


class DenseBlock(nn.Module):
    """Layers (`denselayer1`, ...) that each see the block's input and all maps made before."""

    def __init__(self, before: int, growth: int, depth: int) -> None:
        super().__init__()
        for index in range(depth):
            layer = DenseLayer(before + index * growth, growth)
            self.add_module(f"denselayer{index + 1}", layer)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e h w"]:
        """The input's maps and all new ones."""
        for layer in self.children():
            x = torch.cat([x, layer(x)], 1)
        return x


class Transition(nn.Module):
    """Norm, ReLU, a convolution 1x1 to half of the maps, and an average pool 2x2."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(before)
        self.conv = nn.Conv2d(before, before // 2, 1, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e i j"]:
        """The next block's input."""
        return F.avg_pool2d(self.conv(F.relu(self.norm(x), inplace=True)), 2)


class DenseNet(nn.Module):
    """A dense network without its classifier.

    Convolutions start Kaiming-normal (fan-in), BatchNorm with scale 1 and shift 0.

    Args:
        growth: Number of maps that each layer adds.
        depths: Number of layers in each of the four blocks.
        stem: Number of maps after the first convolution.
        channels: Number of image channels.
    """

    places: ClassVar[dict[str, str]] = {
        "stem": "features.pool0",
        **{str(stage): f"features.transition{stage}" for stage in (1, 2, 3)},
        "4": "features.denseblock4",
    }

    def __init__(self, growth: int, depths: Sequence[int], stem: int, channels: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(channels, stem, 7, 2, 3, bias=False),
            norm0=nn.BatchNorm2d(stem),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, 2, 1),
        )
        maps = stem
        for block, depth in enumerate(depths, start=1):
            layers[f"denseblock{block}"] = DenseBlock(maps, growth, depth)
            maps += depth * growth
            if block < len(depths):
                layers[f"transition{block}"] = Transition(maps)
                maps //= 2
        layers["norm5"] = nn.BatchNorm2d(maps)
        self.features = nn.Sequential(layers)
        self.num_features = maps
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of normalised images.

        Raises:
            InputError: A side is below 29 pixels.
        """
        height, width = image.shape[2:]
        if min(height, width) < SMALLEST_SIDE:
            raise InputError(
                f"images of {height} x {width} pixels are too small for a DenseNet",
                fix=f"give images or crops of {SMALLEST_SIDE} pixels or more, or name a ResNet",
            )
        return F.relu(self.features(image), inplace=True).mean((2, 3))


def modern_key(key: str) -> str:
    """A parameter's name today; torchvision's published files still have those of torch 0.3.

    >>> modern_key("features.denseblock1.denselayer2.norm.1.weight")
    'features.denseblock1.denselayer2.norm1.weight'
    """
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)
