"""The boxes of CutMix.

Yun et al., "CutMix: regularization strategy to train strong classifiers with localizable features",
ICCV 2019, https://arxiv.org/abs/1905.04899.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evenfield.types import UNKNOWN


def draw_boxes(
    kept: Float[Tensor, " n"], height: int, width: int, random: torch.Generator
) -> Bool[Tensor, "n 1 height width"]:
    """For each image a box at a uniform place: True where another image is pasted.

    A box has the sides `side * sqrt(1 - kept)`, rounded, and is cut at the border, so that its area
    may be smaller than 1 - kept: labels are weighted by the true area, `1 - mask.mean()`.

    Args:
        kept: The share of each image that stays (lambda of the paper), 0 to 1, on the CPU.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        random: The generator (of the CPU) that draws the centres.

    >>> draw_boxes(torch.tensor([1.0, 0.0]), 4, 4, torch.default_generator)[0].any()
    tensor(False)
    """
    spans = []
    for side in (height, width):
        length = (side * (1 - kept).clamp(0, 1).sqrt()).round().long()
        centre = torch.randint(side, kept.shape, generator=random)
        low = centre - length // 2
        at = torch.arange(side)
        spans.append((at >= low[:, None]) & (at < (low + length)[:, None]))
    return (spans[0][:, :, None] & spans[1][:, None, :])[:, None]


def cut_mixed(
    image: Float[Tensor, "n c h w"], label: Int[Tensor, " n"], random: torch.Generator
) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Images with a box of another one pasted in, its label, and the share that was kept.

    A box for each image, of a share drawn from Beta(1, 1); nothing is pasted where a label, the own
    or the other's, is unknown.
    """
    n, (height, width) = len(image), image.shape[2:]
    other = torch.randperm(n, generator=random).to(image.device)
    box = draw_boxes(torch.rand(n, generator=random), height, width, random).to(image.device)
    box = box & ((label != UNKNOWN) & (label[other] != UNKNOWN))[:, None, None, None]
    kept = 1 - box.float().mean((1, 2, 3))
    return torch.where(box, image[other], image), label[other], kept
