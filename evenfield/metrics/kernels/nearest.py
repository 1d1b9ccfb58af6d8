"""Exact nearest neighbours by blocks of a product; no approximate index, no random start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from evenfield.errors import InputError
from evenfield.metrics.kernels.similarity import block_rows, dtype_for, unit_rows

Distance = Literal["cosine", "euclidean"]
NOBODY = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The k nearest other rows of each row, nearest first.

    Attributes:
        index: (n, k) rows; -1 where there are fewer than k admissible rows.
        distance: (n, k) Euclidean distance; of rows scaled to length 1 if the distance is `cosine`
            (the square root of 2 - 2 cos, which sorts as cosine does); inf where there is none.
    """

    index: Int[np.ndarray, "n k"]
    distance: Float[np.ndarray, "n k"]

    def first(self, k: int) -> Neighbours:
        """The k nearest of them."""
        return Neighbours(index=self.index[:, :k], distance=self.distance[:, :k])


def placed(features: Float[np.ndarray, "n d"], distance: Distance) -> Float[np.ndarray, "n d"]:
    """Rows whose Euclidean distances are the ones asked for, in the precision that fits the size.

    Raises:
        InputError: A row of zeros has no cosine.
    """
    dtype = dtype_for("auto", *features.shape)
    if distance == "cosine":
        return unit_rows(features, dtype)
    # Distances do not see a shift, but |a|^2 + |b|^2 - 2ab loses digits far from the origin.
    return (features - features.mean(0, dtype=np.float64)).astype(dtype)


def nearest(
    features: Float[np.ndarray, "n d"],
    k: int,
    *,
    distance: Distance = "cosine",
    foreign: Int[np.ndarray, " n"] | None = None,
) -> Neighbours:
    """The k nearest other rows of every row.

    Where rows at equal distance compete for the last place, which of them enters is not defined.

    Args:
        features: (n, d) finite numbers.
        k: At most n - 1.
        distance: `cosine` or `euclidean`.
        foreign: (n,) codes; if given, only rows of another code are neighbours.

    Raises:
        InputError: k is not between 1 and n - 1, or a row of zeros meets `cosine`.

    >>> nearest(np.array([[0.0], [1.0], [3.0]]), 1, distance="euclidean").index.ravel().tolist()
    [1, 0, 1]
    """
    num = len(features)
    if not 1 <= k < num:
        raise InputError(
            f"{k} neighbours were asked for in a table of {num} rows",
            fix=f"choose k between 1 and {num - 1}",
        )
    base = placed(features, distance)
    half = 0.5 * np.einsum("nd,nd->n", base, base)
    value = np.full((num, k), -np.inf, dtype=base.dtype)
    index = np.full((num, k), NOBODY, dtype=np.int64)
    size = block_rows(num)
    # |a - b|^2 / 2 = |a|^2 / 2 - (ab - |b|^2 / 2): the nearest row has the largest closeness.
    # A product serves both of its sides, so half of them are enough.
    for start in range(0, num, size):
        rows, rest = slice(start, start + size), slice(start + size, num)
        product = base[rows] @ base[start:].T
        if foreign is not None:
            product[np.equal.outer(foreign[rows], foreign[start:])] = -np.inf
        np.fill_diagonal(product, -np.inf)
        further = np.subtract(product[:, size:].T, half[rows], order="C")
        product -= half[start:]
        _merge(value[rows], index[rows], product, start)
        _merge(value[rest], index[rest], further, start)
    value = value.astype(np.float64)
    order = np.argsort(-value, axis=1, kind="stable")
    index = np.take_along_axis(index, order, axis=1)
    value = np.take_along_axis(value, order, axis=1)
    index[np.isinf(value)] = NOBODY
    return Neighbours(index=index, distance=np.sqrt(np.maximum(2 * (half[:, None] - value), 0)))


def _merge(
    value: Float[np.ndarray, "n k"],
    index: Int[np.ndarray, "n k"],
    closeness: Float[np.ndarray, "n m"],
    first: int,
) -> None:
    """Let columns first, first + 1, ... compete with the k best so far, in place."""
    num, k = value.shape
    better = closeness > value.min(1, keepdims=True)
    most = int(better.sum(1).max(initial=0))
    if most > closeness.shape[1] // 4:
        few = min(k, closeness.shape[1])
        picked = np.argpartition(closeness, closeness.shape[1] - few, axis=1)[:, -few:]
        new = np.take_along_axis(closeness, picked, axis=1)
    else:  # once good neighbours are known few columns are better: pack them to the left
        row, column = np.nonzero(better)
        count = np.bincount(row, minlength=num)
        slot = np.arange(len(row)) - np.repeat(count.cumsum() - count, count)
        picked = np.zeros((num, most), dtype=np.int64)
        new = np.full((num, most), -np.inf, dtype=closeness.dtype)
        picked[row, slot] = column
        new[row, slot] = closeness[row, column]
    values = np.concatenate([value, new], axis=1)
    indices = np.concatenate([index, picked + first], axis=1)
    best = np.argpartition(values, values.shape[1] - k, axis=1)[:, -k:]
    value[:] = np.take_along_axis(values, best, axis=1)
    index[:] = np.take_along_axis(indices, best, axis=1)
