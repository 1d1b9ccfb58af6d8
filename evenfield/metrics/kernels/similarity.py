"""Cosine similarities in blocks: rows of length 1, repeated rows computed once, bounded memory.

A product of two equal rows may come out with different last bits at different places of a matrix,
so that ties would be broken by the order of rows. Here every distinct row is multiplied once, and
distinct rows are sorted by a hash of their content: equal rows tie exactly, and no value depends on
the order of the table.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from evenfield.errors import InputError

DOUBLE_UP_TO = 10**10
"""Number of multiplications (n * n * d) up to which `auto` works in float64."""
BLOCK_NUMBERS = 2**24
"""How many numbers a block of similarities holds (64 MiB in float32)."""
ROWS_AT_ONCE = 4096

Precision = Literal["auto", "single", "double"]


def dtype_for(precision: Precision, num_rows: int, num_features: int) -> type[np.floating]:
    """float64 where it costs nothing, float32 for large tables, or what was asked for."""
    if precision == "auto":
        small = num_rows * num_rows * num_features <= DOUBLE_UP_TO
        return np.float64 if small else np.float32
    return np.float64 if precision == "double" else np.float32


def unit_rows(
    features: Float[np.ndarray, "n d"], dtype: type[np.floating] = np.float32
) -> Float[np.ndarray, "n d"]:
    """Rows divided by their length; norms are taken in float64.

    In float64 the result is rounded to 2^-48, so that rows of one direction and different lengths
    become equal.

    Raises:
        InputError: A row of zeros, which has no direction.

    >>> unit_rows(np.array([[3.0, 4.0]])).round(1).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    unit = np.empty(features.shape, dtype=dtype)
    zero: list[int] = []
    for start in range(0, len(features), ROWS_AT_ONCE):
        block = np.asarray(features[start : start + ROWS_AT_ONCE], dtype=np.float64)
        length = np.sqrt(np.einsum("nd,nd->n", block, block))[:, None]
        zero.extend((start + np.flatnonzero(length[:, 0] == 0)).tolist())
        block = block / np.where(length > 0, length, 1)
        if dtype is np.float64:
            block = np.rint(block * 2.0**48) / 2.0**48
        unit[start : start + len(block)] = block
    if zero:
        raise InputError(
            f"{len(zero)} profiles are all zero (first: row {zero[0]}), and a zero vector has no "
            "cosine",
            fix="drop these rows, or look for wells without cells",
        )
    unit += 0.0  # no negative zeros: equal numbers, equal bytes
    return unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Distinct:
    """The distinct rows of a matrix, in an order that depends on their content only.

    Attributes:
        rows: (u, d).
        of: (n,) which distinct row each row is.
    """

    rows: Float[np.ndarray, "u d"]
    of: Int[np.ndarray, " n"]


def distinct(unit: Float[np.ndarray, "n d"]) -> Distinct:
    """Each distinct row once, sorted by a hash of its bytes.

    >>> found = distinct(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    >>> len(found.rows), bool(found.of[0] == found.of[2] != found.of[1])
    (2, True)
    """
    order, new = _by_content(unit)
    of = np.empty(len(unit), dtype=np.int64)
    of[order] = np.cumsum(new) - 1
    return Distinct(rows=unit[order[new]], of=of)


def content_order(features: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
    """An order of rows that depends on their numbers only: equal for every order of the table.

    In float32, so that a table that was stored so has the order it had before.
    """
    return _by_content(features.astype(np.float32) + np.float32(0))[0]


def _by_content(
    features: Float[np.ndarray, "n d"],
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Rows sorted by a hash of their bytes, and whether each differs from the one before."""
    features = np.ascontiguousarray(features)
    marks = b"".join(hashlib.blake2b(row.data, digest_size=16).digest() for row in features)
    codes = np.frombuffer(marks, dtype=np.uint64).reshape(len(features), 2)
    order = np.lexsort(codes.T)
    new = np.ones(len(features), dtype=bool)
    new[1:] = (codes[order][1:] != codes[order][:-1]).any(1)
    return order, new


def block_rows(num_columns: int) -> int:
    """How many rows a block may have so that it stays within `BLOCK_NUMBERS`."""
    return max(1, min(1024, BLOCK_NUMBERS // max(num_columns, 1)))
