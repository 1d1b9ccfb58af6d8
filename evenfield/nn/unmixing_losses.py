"""What ContriMix asks of its encoders, beside the consistency of what they see again."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def worst_error(error_nchw: Float[Tensor, "n c h w"]) -> Tensor:
    """0.2 * max over images of the 90 % quantile of |error| + 0.8 * mean of |error|.

    >>> error = torch.tensor([[0.0] * 11, [0.0] * 9 + [-1.0, -1.0]]).reshape(2, 1, 1, 11)
    >>> worst_error(error)  # 0.2 * 1 + 0.8 * 2 / 22
    tensor(0.2727)
    """
    error = error_nchw.abs().flatten(1)
    return 0.2 * upper_quantile(error, 0.9).max() + 0.8 * error.mean()


def upper_quantile(value_nd: Float[Tensor, "n d"], share: float) -> Float[Tensor, " n"]:
    """The quantile of each row by linear interpolation, without sorting all of it.

    >>> upper_quantile(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 0.5)
    tensor([2.5000])
    """
    place = share * (value_nd.shape[1] - 1)
    below = min(int(place), max(value_nd.shape[1] - 2, 0))
    top = value_nd.topk(value_nd.shape[1] - below, sorted=False).values
    pair = top.topk(min(2, top.shape[1]), largest=False).values
    return pair[:, 0].lerp(pair[:, -1], place - below)


def similarity(attribute_mncs: Float[Tensor, "m n c s"]) -> Tensor:
    """Mean over images and all m x m pairs of exp(-|z_i - z_j| / 0.1), a version with itself as 0.

    >>> similarity(torch.zeros(4, 2, 3, 5))  # 3/4
    tensor(0.7500)
    """
    flat = attribute_mncs.flatten(2).transpose(0, 1)
    # The 1e-6 of torch's pairwise distance: a root has no gradient at 0.
    distance = (flat[:, :, None] - flat[:, None] + 1e-6).norm(dim=-1)
    near = (-distance / 0.1).exp()
    return (near * (1 - torch.eye(len(attribute_mncs), device=near.device))).mean()
