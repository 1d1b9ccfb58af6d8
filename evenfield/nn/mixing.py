"""Two images of a batch become one: who may be mixed, blends, and the loss of two labels.

An item that is its own partner stays as it is, to the bit.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from evenfield.types import UNKNOWN, Batch


def mixable(batch: Batch) -> Int[np.ndarray, " m"]:
    """The places of the items that may be mixed: with a known label, and no controls."""
    return torch.nonzero(batch.scored)[:, 0].cpu().numpy()


def blend(
    image: Float[Tensor, "n c h w"], partner: Int[Tensor, " n"], keep: Float[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """The mean of each image and its partner, with weights `keep` and 1 - `keep`.

    >>> x = torch.tensor([0.0, 8.0]).reshape(2, 1, 1, 1)
    >>> blend(x, torch.tensor([1, 0]), torch.tensor([0.75, 0.75])).flatten()
    tensor([2., 6.])
    """
    return torch.lerp(image[partner], image, keep.to(image.dtype)[:, None, None, None])


def mixed_cross_entropy(
    logits: Float[Tensor, "n k"],
    label: Int[Tensor, " n"],
    partner: Int[Tensor, " n"],
    keep: Float[Tensor, " n"],
) -> Float[Tensor, ""]:
    """The mean over known items of keep CE(z, y) + (1 - keep) CE(z, y of the partner).

    Equal to the cross-entropy against the mixture of the two one-hot labels. 0 (with a gradient)
    if no label is known.

    >>> z = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    >>> own, mixed = torch.tensor([0, 1]), torch.tensor([1, 1])
    >>> mixed_cross_entropy(z, own, mixed, torch.tensor([0.5, 1.0]))  # (log 2 + 2.1269) / 2
    tensor(1.4100)
    """
    known = label != UNKNOWN
    own = F.cross_entropy(logits.float(), label, ignore_index=UNKNOWN, reduction="none")
    other = F.cross_entropy(logits.float(), label[partner], ignore_index=UNKNOWN, reduction="none")
    return torch.lerp(other, own, keep.to(own.dtype)).sum() / known.sum().clamp(min=1)
