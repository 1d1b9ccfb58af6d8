"""Average precision from ranks: of many queries at once, expected by chance, and drawn by chance.

The value of a query with P positives and N negatives, at similarities s, is

    AP = 1/P sum over positives j of  #{positives with s >= s_j} / #{pairs with s >= s_j}

which is the usual average precision where no two similarities are equal. Equal ones enter together,
with the precision at the end of their block (as scikit-learn does): the value depends on ranks only
and never on the order of rows; if all are equal it is P / (P + N).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import digamma

from evenfield.errors import InputError
from evenfield.metrics.kernels.pairs import MISSING, PairRule
from evenfield.metrics.kernels.similarity import block_rows, distinct


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """What came out for each query.

    Attributes:
        average_precision: (q,) NaN where there is no positive or no negative.
        num_positives: (q,).
        num_negatives: (q,).
    """

    average_precision: Float[np.ndarray, " q"]
    num_positives: Int[np.ndarray, " q"]
    num_negatives: Int[np.ndarray, " q"]


def average_precision(
    positives: Float[np.ndarray, " p"], negatives: Float[np.ndarray, " n"]
) -> float:
    """Average precision of ONE query from the similarities of its pairs.

    >>> average_precision(np.array([0.9, 0.5]), np.array([0.7, 0.1]))  # (1/1 + 2/3) / 2
    0.8333333333333333
    >>> average_precision(np.array([0.5]), np.array([0.5]))
    0.5
    """
    queries = np.zeros(len(positives), dtype=np.int64)
    above = (np.asarray(negatives) >= np.asarray(positives)[:, None]).sum(1)
    return float((_hits(positives, queries, 1) / (_hits(positives, queries, 1) + above)).mean())


def rank_all(
    unit: Float[np.ndarray, "n d"],
    positive: PairRule,
    negative: PairRule,
    queries: Int[np.ndarray, " q"],
) -> Ranked:
    """Average precision of many queries, in blocks of one product each.

    Args:
        unit: (n, d) rows of length 1.
        positive: Which rows a query should find.
        negative: Which rows it should not.
        queries: (q,) rows that ask.

    Raises:
        InputError: A pair is both positive and negative.
    """
    unique = distinct(unit)
    ranked = Ranked(
        average_precision=np.full(len(queries), np.nan),
        num_positives=np.zeros(len(queries), dtype=np.int64),
        num_negatives=np.zeros(len(queries), dtype=np.int64),
    )
    place = np.full(len(unique.rows), -1, dtype=np.int64)  # of a distinct row in a block's columns
    for asked, among in _shares(unique.of, positive, negative, queries):
        shown, expand = np.unique(unique.of[among], return_inverse=True)
        base = unique.rows if len(shown) == len(unique.rows) else unique.rows[shown]
        place[shown] = np.arange(len(shown))
        size = block_rows(len(among))
        for start in range(0, len(asked), size):
            numbers = asked[start : start + size]
            rows = queries[numbers]
            query, target = positive.partners(rows)
            _refuse_both(rows[query], target, negative)
            column = unique.of[target]
            extra = np.unique(column[place[column] < 0])
            place[extra] = len(shown) + np.arange(len(extra))
            block = unique.rows[unique.of[rows]]
            similarity = block @ base.T
            found = _pick(similarity, block @ unique.rows[extra].T, query, place[column])
            place[extra] = -1
            allowed = negative.mask(rows, among)
            if len(shown) < len(among):
                similarity = similarity[:, expand]
            np.copyto(similarity, -np.inf, where=~allowed)
            similarity.sort(axis=1)
            num = np.bincount(query, minlength=len(rows))
            ends = num.cumsum()
            above = np.empty(len(found))
            for i, end in enumerate(ends):
                mine = slice(end - num[i], end)
                above[mine] = similarity.shape[1] - similarity[i].searchsorted(found[mine])
            hits = _hits(found, query, len(rows))
            total = np.bincount(query, hits / (hits + above), minlength=len(rows))
            ranked.num_positives[numbers] = num
            ranked.num_negatives[numbers] = allowed.sum(1)
            with np.errstate(invalid="ignore"):
                value = total / num
            value[ranked.num_negatives[numbers] == 0] = np.nan
            ranked.average_precision[numbers] = value
        place[shown] = -1
    return ranked


def _pick(
    similarity: Float[np.ndarray, "r m"],
    further: Float[np.ndarray, "r e"],
    row: Int[np.ndarray, " p"],
    column: Int[np.ndarray, " p"],
) -> Float[np.ndarray, " p"]:
    """Entries of two matrices that stand side by side."""
    m = similarity.shape[1]
    picked = similarity[row, np.minimum(column, m - 1)] if m else np.empty(len(row), further.dtype)
    beyond = column >= m
    picked[beyond] = further[row[beyond], column[beyond] - m]
    return picked


def _hits(
    similarity: Float[np.ndarray, " p"], query: Int[np.ndarray, " p"], num_queries: int
) -> Int[np.ndarray, " p"]:
    """For each positive the number of positives of its query that are at least as similar."""
    order = np.lexsort([-similarity, query])
    sorted_query, sorted_value = query[order], similarity[order]
    ends = np.searchsorted(sorted_query, np.arange(num_queries), side="right")
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    # The end of each run of equal values: equal positives enter together.
    last = np.ones(len(order), dtype=bool)
    last[:-1] = (sorted_query[1:] != sorted_query[:-1]) | (sorted_value[1:] != sorted_value[:-1])
    run_end = np.flatnonzero(last)[np.cumsum(last) - last]
    hits = np.empty(len(order), dtype=np.int64)
    hits[order] = run_end - starts[sorted_query] + 1
    return hits


def _shares(
    distinct_of: Int[np.ndarray, " n"],
    positive: PairRule,
    negative: PairRule,
    queries: Int[np.ndarray, " q"],
) -> Iterator[tuple[Int[np.ndarray, " a"], Int[np.ndarray, " m"]]]:
    """Queries that share their possible negatives: numbers of queries, rows of the negatives.

    Sorted by content, so that every product is the same whatever the order of the table.
    """
    keys = [distinct_of[queries]]
    if positive.same is not None:
        keys.append(positive.same[queries])
    order = np.lexsort(keys)
    among = np.lexsort([distinct_of])
    if negative.same is None:
        yield order, among[negative.known[among]]
        return
    for code in np.unique(negative.same[queries]):
        mine = order[negative.same[queries[order]] == code]
        yield mine, among[(negative.same[among] == code) & (code != MISSING)]


def _refuse_both(
    rows: Int[np.ndarray, " p"], targets: Int[np.ndarray, " p"], negative: PairRule
) -> None:
    both = np.flatnonzero(negative.holds(rows, targets))
    if len(both):
        raise InputError(
            f"rows {rows[both[0]]} and {targets[both[0]]} are a positive and a negative pair at "
            f"once ({len(both)} such pairs in this block)",
            fix="name a column in pos_sameby and neg_diffby, or in pos_diffby and neg_sameby",
        )


def expected_ap(
    num_positives: Int[np.ndarray, "*s"], num_negatives: Int[np.ndarray, "*s"]
) -> Float[np.ndarray, "*s"]:
    """Mean average precision of random rankings (Bestgen 2015), with L = P + N and H_L harmonic:

        E[AP] = ((P - 1) / (L - 1) * (L - H_L) + H_L) / L

    >>> float(expected_ap(np.array(1), np.array(1)))  # (1 + 1/2) / 2
    0.75
    """
    p = np.asarray(num_positives, dtype=np.float64)
    total = p + np.asarray(num_negatives, dtype=np.float64)
    harmonic = digamma(total + 1) + np.euler_gamma
    share = (p - 1) / np.maximum(total - 1, 1)
    return (share * (total - harmonic) + harmonic) / total


def random_ap(
    num_positives: int, num_negatives: int, size: int, rng: np.random.Generator
) -> Float[np.ndarray, " size"]:
    """Average precision of `size` random rankings.

    The numbers of negatives before, between and after the positives of a random ranking are
    uniform over all ways to share N among P + 1 gaps: a multinomial whose probabilities are drawn
    from the flat Dirichlet distribution. So a draw costs P numbers, however many negatives.
    """
    found = np.empty(size)
    step = max(1, 2**22 // (num_positives + 1))
    hits = np.arange(1, num_positives + 1)
    for start in range(0, size, step):
        num = min(step, size - start)
        share = rng.standard_exponential((num, num_positives + 1))
        share /= share.sum(1, keepdims=True)
        gaps = rng.multinomial(num_negatives, share)
        above = gaps[:, :-1].cumsum(1)
        found[start : start + num] = (hits / (hits + above)).mean(1)
    return found
