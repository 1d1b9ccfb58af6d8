"""Instance and batch normalisation side by side: half of the channels forget each image's style.

Pan et al., "Two at once: enhancing learning and generalization capacities via IBN-Net", ECCV 2018
(arXiv 1807.09441). InstanceNorm takes the statistics of every image and channel alone, in training
and in evaluation: it needs no batch, adapts to nothing and has no buffers. Keys (`IN.weight`,
`BN.running_mean`, ...) are those of the authors' published weights, which therefore load.

Two networks of `nn.resnet` follow the paper. IBN-a has this layer after the first convolution of
every block of stages 1 to 3, none in stage 4, where features are the content. IBN-b has plain
InstanceNorm in three places: after the stem's convolution, where it stands instead of BatchNorm (as
in the authors' code), and after the addition that ends stages 1 and 2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class InstanceBatchNorm(nn.Module):
    """InstanceNorm of the first half of the channels, BatchNorm of the rest (the paper's IBN-a).

    The BatchNorm layer is an ordinary one, so that every adapter of statistics works on it.

    Args:
        channels: Number of channels; of an odd number BatchNorm gets the larger half.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.IN = nn.InstanceNorm2d(half, affine=True)
        self.BN = nn.BatchNorm2d(channels - half)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalised features, each half by its own rule."""
        a, b = x.split([self.IN.num_features, self.BN.num_features], 1)
        return torch.cat([self.IN(a), self.BN(b)], 1)
