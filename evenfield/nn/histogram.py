"""Exact feature distribution matching: values of one map, in the order of another.

Zhang et al., "Exact feature distribution matching for arbitrary style transfer and domain
generalization", CVPR 2022, https://arxiv.org/abs/2203.07740.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2**18
"""Values sorted at a time on a processor: the keys, 8 bytes each, stay in its cache."""


def matched(
    x: Float[Tensor, "n c *pixels"],
    share: Float[Tensor, " n"],
    partner: Int[Tensor, " n"],
) -> Float[Tensor, "n c *pixels"]:
    """The mixture `x + share (y - stopgrad(x))`; y has the partner's values in the order of x.

    Channel by channel; equal values keep the order of their positions. This is EFDMix (Eq. 7) with
    `share` = 1 - lambda, and exact matching with 1.

    >>> x = torch.tensor([[[3.0, 1.0, 2.0]], [[10.0, 30.0, 20.0]]])
    >>> matched(x, torch.tensor([1.0, 0.5]), torch.tensor([1, 0]))
    tensor([[[30.0000, 10.0000, 20.0000]],
    <BLANKLINE>
            [[ 5.5000, 16.5000, 11.0000]]])
    """
    return _Matched.apply(x, share, partner)


def ordered(rows: Float[Tensor, "m p"]) -> tuple[Float[Tensor, "m p"], Int[Tensor, "m p"]]:
    """The values of every row in ascending order, and where each one stood; a stable sort.

    On a processor float32 values are sorted as integer keys that hold value and position: numpy
    sorts whole numbers several times faster than torch sorts floats with an index.

    >>> values, index = ordered(torch.tensor([[0.0, -1.0, 0.0, -2.0]]))
    >>> values.tolist(), index.tolist()
    ([[-2.0, -1.0, 0.0, 0.0]], [[3, 1, 0, 2]])
    """
    if rows.is_cuda or rows.dtype != torch.float32:
        values, index = rows.sort(dim=1, stable=True)
        return values, index
    rows = rows.contiguous() + 0.0  # -0.0 and 0.0 are equal values, but other bits
    values = torch.empty_like(rows)
    keys = torch.empty(rows.shape, dtype=torch.int64)
    position = torch.arange(rows.shape[1])
    step = max(1, BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        key = keys[part]
        key.copy_(_in_order(rows[part].view(torch.int32)))
        key.bitwise_left_shift_(32).bitwise_or_(position)
        key.numpy().sort(axis=1)
        upper = (key >> 32).int()
        values[part] = _in_order(upper).view(torch.float32)
        key.bitwise_and_(0xFFFFFFFF)
    return values, keys


def _in_order(bits: Int[Tensor, "m p"]) -> Int[Tensor, "m p"]:
    """Integers that are ordered as the floats with these bits; applied twice, the bits again."""
    return (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)


class _Matched(torch.autograd.Function):
    """`matched`, with the gradient of its definition: to x whole, to the partner's values by rank.

    Written out because autograd would keep two sorted copies and scatter twice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Tensor, partner: Tensor) -> Tensor:
        n, c = x.shape[:2]
        exact = x if x.dtype == torch.float64 else x.float()
        flat = exact.reshape(n * c, -1)
        values, index = (part.view(n, c, -1) for part in ordered(flat))
        ctx.save_for_backward(index, share, partner)
        target = torch.empty_like(values).scatter_(2, index, values[partner])
        weight = share.to(exact.dtype).reshape(-1, *([1] * (x.ndim - 1)))
        return torch.lerp(exact, target.view(x.shape), weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        index, share, partner = ctx.saved_tensors
        by_rank = dy.reshape(index.shape).gather(2, index)
        by_rank *= share.to(dy.dtype)[:, None, None]
        received = torch.zeros_like(by_rank).index_add_(0, partner, by_rank)
        given = torch.empty_like(received).scatter_(2, index, received)
        return dy + given.view(dy.shape), None, None
