"""Which rows form a pair: equal in some columns, different in others (the language of copairs)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from evenfield.errors import InputError

MISSING = -1


def codes_of(column: pd.Series) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Codes (n,) and the sorted names they stand for; -1 where the value is missing or empty.

    >>> codes_of(pd.Series(["b", "a", None, "b"]))
    (array([ 1,  0, -1,  1]), ('a', 'b'))
    """
    text = column.astype(str).to_numpy(dtype=object)
    missing = column.isna().to_numpy() | (text == "")
    codes = np.full(len(text), MISSING, dtype=np.int64)
    names, codes[~missing] = np.unique(text[~missing].astype(str), return_inverse=True)
    return codes, tuple(names.tolist())


def joint_codes(parts: Sequence[Int[np.ndarray, " n"]]) -> Int[np.ndarray, " n"]:
    """One code for each combination of codes, in sorted order; -1 where any part is missing."""
    table = np.stack(parts, axis=1)
    known = (table != MISSING).all(1)
    codes = np.full(len(table), MISSING, dtype=np.int32)
    if known.any():
        _, inverse = np.unique(table[known], axis=0, return_inverse=True)
        codes[known] = inverse.ravel()
    return codes


class PairRule:
    """Pairs of rows that are equal in all of `sameby` and different in all of `diffby`.

    A row with a missing value in one of these columns has no such pair, and no row is its own pair.

    Attributes:
        same: (n,) code of the group that a row's partners share; None without `sameby`.
        different: (n,) codes, one array for each column of `diffby`.
        known: (n,) bool, rows without a missing value.
    """

    def __init__(
        self, metadata: pd.DataFrame, sameby: Sequence[str], diffby: Sequence[str], *, what: str
    ) -> None:
        """The rule for a table.

        Args:
            metadata: One row for each profile.
            sameby: Columns whose values agree.
            diffby: Columns whose values differ, all of them.
            what: `positive` or `negative`, for messages.

        Raises:
            InputError: No column at all, a column that does not exist or is in both lists.
        """
        columns = [*sameby, *diffby]
        absent = [name for name in columns if name not in metadata]
        if absent or not columns or len(set(columns)) < len(columns):
            problem = (
                f"there is no column {', '.join(absent)}"
                if absent
                else "no column defines them"
                if not columns
                else "a column is named twice"
            )
            raise InputError(
                f"{what} pairs: {problem} (sameby {list(sameby)}, diffby {list(diffby)})",
                fix=f"use columns of the table: {', '.join(map(str, metadata.columns[:12]))}",
            )
        codes = {name: codes_of(metadata[name])[0].astype(np.int32) for name in columns}
        self.same = joint_codes([codes[name] for name in sameby]) if sameby else None
        self.different = [codes[name] for name in diffby]
        self.known = np.all([code != MISSING for code in codes.values()], axis=0)
        group = np.zeros(len(metadata), np.int32) if self.same is None else self.same
        self._order = np.argsort(group, kind="stable")
        self._bounds = np.searchsorted(group[self._order], np.arange(group.max(initial=0) + 2))

    def partners(
        self, rows: Int[np.ndarray, " r"]
    ) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
        """All pairs of `rows`: the position in `rows` (ascending) and the partner's row."""
        code = np.zeros(len(rows), np.int32) if self.same is None else self.same[rows]
        start = np.where(self.known[rows], self._bounds[code], 0)
        size = np.where(self.known[rows], self._bounds[code + 1], 0) - start
        position = np.repeat(np.arange(len(rows)), size)
        inside = np.arange(size.sum()) - np.repeat(size.cumsum() - size, size)
        partner = self._order[start[position] + inside]
        keep = self.holds(rows[position], partner)
        return position[keep], partner[keep]

    def holds(self, a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"]) -> Bool[np.ndarray, " p"]:
        """Whether row `a[i]` and row `b[i]` are a pair."""
        found = self.known[a] & self.known[b] & (a != b)
        if self.same is not None:
            found &= self.same[a] == self.same[b]
        for codes in self.different:
            found &= codes[a] != codes[b]
        return found

    def mask(
        self, rows: Int[np.ndarray, " r"], among: Int[np.ndarray, " m"]
    ) -> Bool[np.ndarray, "r m"]:
        """(r, m) whether each of `rows` pairs with each of `among`."""
        found = np.logical_and.outer(self.known[rows], self.known[among])
        if self.same is not None:
            found &= np.equal.outer(self.same[rows], self.same[among])
        for codes in self.different:
            found &= np.not_equal.outer(codes[rows], codes[among])
        if not self.different:  # else a row differs from itself in nothing, and is out already
            found &= np.not_equal.outer(rows, among)
        return found
