"""Cross-correlation of two views' outputs, driven to the identity: Barlow Twins, in a mean form.

Zbontar et al., "Barlow Twins: self-supervised learning via redundancy reduction", ICML 2021,
https://arxiv.org/abs/2103.03230. As CDCL uses it, on- and off-diagonal terms are means over the
entries, not sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

EPS = 1e-5


class Redundancy(NamedTuple):
    """Distances of the correlation matrices M of every pair of views (g, v) from the identity.

    Attributes:
        on: Mean over i of (M_ii - 1)^2.
        off: Mean over i != j of M_ij^2.
    """

    on: Tensor
    off: Tensor


def standardised(x_nvk: Float[Tensor, "n v k"]) -> Float[Tensor, "n v k"]:
    """Each output of each view with mean 0 and variance 1 over the items (BatchNorm, eps 1e-5).

    >>> standardised(torch.tensor([[[1.0]], [[3.0]]])).flatten()
    tensor([-1.0000,  1.0000])
    """
    variance, mean = torch.var_mean(x_nvk, 0, correction=0, keepdim=True)
    return (x_nvk - mean) / (variance + EPS).sqrt()


def redundancy_full(a: Float[Tensor, "n g k"], b: Float[Tensor, "n v k"]) -> Redundancy:
    """By the definition: M = A^T B / n of each pair, (k, k)."""
    k = a.shape[2]
    m = torch.einsum("ngi,nvj->gvij", a, b) / len(a)
    diagonal = m.diagonal(dim1=2, dim2=3)
    squares = m.square().sum((2, 3)) - diagonal.square().sum(2)
    return Redundancy((diagonal - 1).square().mean(2), squares / max(1, k * (k - 1)))


def redundancy_gram(a: Float[Tensor, "n g k"], b: Float[Tensor, "n v k"]) -> Redundancy:
    """The same numbers without any (k, k) matrix: sum_ij M_ij^2 = sum (A A^T * B B^T) / n^2.

    Exact, and cheaper where there are more outputs than items: n^2 k products for each view, where
    the definition takes n k^2 for each pair.
    """
    n, k = a.shape[0], a.shape[2]
    gram_a = torch.einsum("ngk,mgk->gnm", a, a).flatten(1)
    gram_b = torch.einsum("nvk,mvk->vnm", b, b).flatten(1)
    diagonal = torch.einsum("ngk,nvk->gvk", a, b) / n
    squares = gram_a @ gram_b.T / n**2 - diagonal.square().sum(2)
    return Redundancy((diagonal - 1).square().mean(2), squares / max(1, k * (k - 1)))


def redundancy(how: str, n: int, k: int) -> Callable[[Tensor, Tensor], Redundancy]:
    """`gram`, `full`, or for `auto` the one with smaller matrices: (n, n) or (k, k).

    >>> redundancy("auto", 64, 4096).__name__, redundancy("auto", 512, 128).__name__
    ('redundancy_gram', 'redundancy_full')
    """
    gram = n <= k if how == "auto" else how == "gram"
    return redundancy_gram if gram else redundancy_full
