"""A search for the worst offsets: projected steps of normalised gradient ascent.

Gradients are taken for the offsets only: no weight receives one, and none is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Offsets = dict[str, Tensor]
"""What is searched over, by place; each row (the last axis) is one step's unit of length."""


def projected(
    offset: Float[Tensor, "m ..."], rho: float, constraint: Literal["box", "ball"]
) -> Float[Tensor, "m ..."]:
    """The offset inside |a| <= rho (box), or |a|_2 <= rho sqrt(c) for each row of c (ball).

    >>> x = torch.tensor([[3.0, 4.0]])
    >>> projected(x, 1.0, "box"), projected(x, 2.5, "ball")  # 2.5 sqrt(2) = 3.54 of 5
    (tensor([[1., 1.]]), tensor([[2.1213, 2.8284]]))
    """
    if constraint == "box":
        return offset.clamp(-rho, rho)
    length = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
    largest = rho * offset.shape[-1] ** 0.5
    return offset * (largest / length.clamp(min=1e-12)).clamp(max=1)


def rms(x: Float[Tensor, "m ..."]) -> Float[Tensor, "m ..."]:
    """The root mean square of each row, kept as an axis; 1e-12 at least."""
    return x.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)


def ascend(
    objective: Callable[[Offsets], Tensor],
    start: Offsets,
    *,
    steps: int,
    eta: float,
    project: Callable[[Tensor], Tensor],
) -> tuple[Offsets, Tensor]:
    """Steps `a <- project(a + eta g / rms(g))` up the objective; a row without gradient stays.

    Args:
        objective: A scalar of the offsets.
        start: Where the search begins.
        steps: T, 1 or more.
        eta: Root mean square of a step, of each row.
        project: Into the set of allowed offsets.

    Returns:
        The offsets after the last step, and the objective at the start.
    """
    offsets, values = start, []
    for _ in range(steps):
        leaves = {place: offset.detach().requires_grad_() for place, offset in offsets.items()}
        with torch.enable_grad():
            values.append(objective(leaves))
            slopes = torch.autograd.grad(values[-1], list(leaves.values()))
        offsets = {
            place: project(leaf.detach() + eta * slope / rms(slope))
            for (place, leaf), slope in zip(leaves.items(), slopes, strict=True)
        }
    return offsets, values[0].detach()


@contextmanager
def weights_held(model: nn.Module) -> Iterator[None]:
    """Inside the block no parameter asks for a gradient, so that none is computed for it."""
    learning = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
