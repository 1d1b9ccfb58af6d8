"""One right angle for a whole batch, as ContriMix turns its mixes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def turned_alike(
    image: Float[Tensor, "n c h w"], noise: float, random: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """All images turned by one right angle and mirrored alike (a half turn if they are oblong)."""
    turns, down, across = torch.randint(4, (3,), generator=random).tolist()
    if image.shape[2] != image.shape[3]:
        turns = 2 * (turns // 2)
    sides = [axis for axis, code in ((2, down), (3, across)) if code % 2]
    image = image.rot90(turns, (2, 3)).flip(sides)
    if noise > 0:
        drawn = torch.randn(image.shape, generator=random).to(image.device)
        image = (image + noise * drawn).clamp(0, 1)
    return image
