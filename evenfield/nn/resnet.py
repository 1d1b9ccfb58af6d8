"""Residual networks for any number of channels, with torchvision's names of parameters.

He et al., "Deep residual learning for image recognition", CVPR 2016, with the stride of a
bottleneck in its 3x3 convolution. `ResNet(..., pooling=True)` is the variant in which CS-ARM-BN was
published: every convolution after the stem has stride 1 and an average pool shrinks the map, after
the 3x3 convolution and on the shortcut alike (the bottleneck of Radford et al., "Learning
transferable visual models from natural language supervision", ICML 2021). `ResNet(..., ibn="a")`
and `"b"` are the variants with instance normalisation of Pan et al. (see `nn.ibn`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.nn.ibn import InstanceBatchNorm

IBN = Literal["a", "b"]


class Shortcut(nn.Sequential):
    """Convolution 1x1 and BatchNorm (keys `0`, `1`), behind an average pool if `pool` > 1."""

    def __init__(self, before: int, after: int, *, stride: int, pool: int) -> None:
        super().__init__(
            nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
        )
        self.pool = pool

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e i j"]:
        """The shortcut's map."""
        return super().forward(F.avg_pool2d(x, self.pool) if self.pool > 1 else x)


def shortcut(before: int, after: int, stride: int, *, pooling: bool) -> Shortcut | None:
    """A shortcut with weights where size or width change; None (the identity) elsewhere."""
    if stride == 1 and before == after:
        return None
    if pooling:
        return Shortcut(before, after, stride=1, pool=stride)
    return Shortcut(before, after, stride=stride, pool=1)


class BasicBlock(nn.Module):
    """Two convolutions 3x3 around a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(
        self, before: int, width: int, stride: int, *, pooling: bool, ibn: IBN | None = None
    ) -> None:
        super().__init__()
        self.pool = stride if pooling else 1
        self.conv1 = nn.Conv2d(before, width, 3, 1 if pooling else stride, 1, bias=False)
        self.bn1 = InstanceBatchNorm(width) if ibn == "a" else nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.IN = nn.InstanceNorm2d(width, affine=True) if ibn == "b" else None
        self.downsample = shortcut(before, width, stride, pooling=pooling)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e i j"]:
        """The next map."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.pool > 1:
            y = F.avg_pool2d(y, self.pool)
        y = self.bn2(self.conv2(y))
        y = y.add_(x if self.downsample is None else self.downsample(x))
        return F.relu(y if self.IN is None else self.IN(y), inplace=True)


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3, 1x1 around a shortcut (ResNet-50)."""

    expansion = 4

    def __init__(
        self, before: int, width: int, stride: int, *, pooling: bool, ibn: IBN | None = None
    ) -> None:
        super().__init__()
        after = width * self.expansion
        self.pool = stride if pooling else 1
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = InstanceBatchNorm(width) if ibn == "a" else nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1 if pooling else stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.IN = nn.InstanceNorm2d(after, affine=True) if ibn == "b" else None
        self.downsample = shortcut(before, after, stride, pooling=pooling)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e i j"]:
        """The next map."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        if self.pool > 1:
            y = F.avg_pool2d(y, self.pool)
        y = self.bn3(self.conv3(y))
        y = y.add_(x if self.downsample is None else self.downsample(x))
        return F.relu(y if self.IN is None else self.IN(y), inplace=True)


class ResNet(nn.Module):
    """A residual network without its classifier.

    Convolutions start Kaiming-normal (fan-out), BatchNorm with scale 1 and shift 0.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: Number of blocks in each of the four stages.
        channels: Number of image channels.
        pooling: Average pools instead of strides, and the published head: a mean over windows of
            7 x 7 (or the map's side, if smaller) and then over the windows, so that the centre of a
            map counts more.
        ibn: `a`: InstanceNorm for half of the channels after the first convolution of every block
            of stages 1 to 3. `b`: three InstanceNorm layers, one instead of the stem's BatchNorm,
            one after the addition at the end of stages 1 and 2 each.
    """

    places: ClassVar[dict[str, str]] = {
        "stem": "maxpool",
        **{str(stage): f"layer{stage}" for stage in (1, 2, 3, 4)},
    }

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        channels: int,
        *,
        pooling: bool = False,
        ibn: IBN | None = None,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.InstanceNorm2d(64, affine=True) if ibn == "b" else nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = 64
        for stage, depth in enumerate(depths):
            width, blocks = 64 * 2**stage, []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                mixed = {None: False, "a": stage < 3, "b": stage < 2 and index == depth - 1}[ibn]
                kind = ibn if mixed else None
                blocks.append(block(before, width, stride, pooling=pooling, ibn=kind))
                before = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_features = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of normalised images with sides of 32 pixels or more."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(image)), inplace=True))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(stage)(x)
        if self.pooling:
            x = F.avg_pool2d(x, min(7, *x.shape[2:]), stride=1)
        return x.mean((2, 3))
