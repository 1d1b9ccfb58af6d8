"""Average precision of tables of profiles: pairs by columns, groups, p-values against chance."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import false_discovery_control

from evenfield.errors import EvenfieldWarning, InputError
from evenfield.metrics.kernels.pairs import PairRule
from evenfield.metrics.kernels.retrieval import expected_ap, random_ap, rank_all
from evenfield.metrics.kernels.similarity import Precision, dtype_for, unit_rows
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles

Rule = Literal[">=", "copairs-0.5.5"]
Nulls = Mapping[tuple[int, int], Float[np.ndarray, " m"]]
SAME = 1e-9
"""Two means that differ by less are the same number (they were summed in another order)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which pairs a query should rank first, and among which others.

    Attributes:
        pos_sameby: Columns that agree in a positive pair.
        pos_diffby: Columns that differ in it, all of them.
        neg_sameby: Columns that agree in a negative pair.
        neg_diffby: Columns that differ in it, all of them.
    """

    pos_sameby: tuple[str, ...] = ()
    pos_diffby: tuple[str, ...] = ()
    neg_sameby: tuple[str, ...] = ()
    neg_diffby: tuple[str, ...] = ()


def average_precision(
    profiles: Profiles,
    question: Question,
    *,
    queries: Bool[np.ndarray, " n"] | None = None,
    precision: Precision = "auto",
) -> pd.DataFrame:
    """Average precision of each row's ranking of its pairs by cosine similarity.

    Args:
        profiles: (n, d) finite numbers, no row of zeros.
        question: Which pairs are positive, which negative.
        queries: (n,) rows that ask; default all. Rows that do not can still be partners.
        precision: Of the products: `auto` is float64 for small tables, float32 for large ones.

    Returns:
        The metadata with `average_precision`, `normalized_average_precision` (0 = chance,
        1 = perfect), `n_pos_pairs` and `n_total_pairs`; NaN where a query has no positive or no
        negative pair. copairs' `mean_average_precision` takes this table as it is.

    Raises:
        InputError: A column that does not exist, a pair that is positive and negative at once, a
            row of zeros.

    Warns:
        EvenfieldWarning: Queries without negatives were left out.
    """
    features = profiles.features
    unit = unit_rows(features, dtype_for(precision, *features.shape))
    asked = np.arange(len(features)) if queries is None else np.flatnonzero(queries)
    positive = PairRule(
        profiles.metadata, question.pos_sameby, question.pos_diffby, what="positive"
    )
    negative = PairRule(
        profiles.metadata, question.neg_sameby, question.neg_diffby, what="negative"
    )
    ranked = rank_all(unit, positive, negative, asked)
    table = profiles.metadata.copy()
    num_pos, num_neg = np.zeros((2, len(table)), dtype=np.int64)
    num_pos[asked], num_neg[asked] = ranked.num_positives, ranked.num_negatives
    value = np.full(len(table), np.nan)
    value[asked] = ranked.average_precision
    known = np.isfinite(value)
    normalized = np.full(len(table), np.nan)
    mean = expected_ap(num_pos[known], num_neg[known])
    normalized[known] = (value[known] - mean) / (1 - mean)
    table["n_pos_pairs"], table["n_total_pairs"] = num_pos, num_pos + num_neg
    table["average_precision"], table["normalized_average_precision"] = value, normalized
    alone = int(((num_pos > 0) & (num_neg == 0)).sum())
    if alone:
        warnings.warn(
            f"{alone} of {len(asked)} queries have positive but no negative pairs: they cannot be "
            "ranked and are left out",
            EvenfieldWarning,
            stacklevel=2,
        )
    return table


def mean_average_precision(
    table: pd.DataFrame,
    sameby: Sequence[str],
    *,
    null_size: int = 10_000,
    threshold: float = 0.05,
    seed: int = 0,
    rule: Rule = ">=",
    nulls: Nulls | None = None,
) -> pd.DataFrame:
    """Mean average precision of groups, with p-values against random rankings.

    Null of a group: the mean, over its queries, of the average precision of a random ranking with
    as many positives and negatives. p = (1 + number of null means >= the observed one) / (1 + null
    size); q after Benjamini and Hochberg over all groups.

    Args:
        table: From `average_precision`.
        sameby: Columns that define a group, mostly the treatment.
        null_size: Draws for each distinct (positives, negatives).
        threshold: Of `below_p` and `below_corrected_p`.
        seed: Of the draws.
        rule: `>=`, or `copairs-0.5.5`: strictly greater, in float32.
        nulls: Draws that were made elsewhere, by (positives, negatives).

    Returns:
        One row for each group, in sorted order: the columns of `sameby`, `num_queries`,
        `mean_average_precision`, `mean_normalized_average_precision`, `expected_average_precision`
        (chance), `p_value`, `corrected_p_value`, `below_p`, `below_corrected_p`.

    Raises:
        InputError: No query could be scored, or a column does not exist.

    Warns:
        EvenfieldWarning: The null is too small for a single group to pass the correction.
    """
    scored = table[table["average_precision"].notna()].dropna(
        subset=[name for name in sameby if name in table]
    )
    absent = [name for name in sameby if name not in table]
    if absent or not len(scored):
        raise InputError(
            f"there is no column {', '.join(absent)}"
            if absent
            else f"no query has a positive and a negative pair ({len(table)} rows)",
            fix="check the columns of the question: replicates that lie in the same well of every "
            "plate, for example, have no partner in another well",
        )
    num_pos = scored["n_pos_pairs"].to_numpy()
    num_neg = scored["n_total_pairs"].to_numpy() - num_pos
    scored = scored.assign(expected_average_precision=expected_ap(num_pos, num_neg))
    pairs, kind = np.unique(np.stack([num_pos, num_neg], axis=1), axis=0, return_inverse=True)
    drawn = _draws(pairs, null_size, seed, nulls)
    groups = scored.groupby(list(sameby), observed=True, sort=True)
    found = groups.agg(
        num_queries=("average_precision", "size"),
        mean_average_precision=("average_precision", "mean"),
        mean_normalized_average_precision=("normalized_average_precision", "mean"),
        expected_average_precision=("expected_average_precision", "mean"),
    ).reset_index()
    number = groups.ngroup().to_numpy()
    ends = np.bincount(number).cumsum()[:-1]
    kinds = np.split(kind.ravel()[np.argsort(number, kind="stable")], ends)
    memory: dict[bytes, Float[np.ndarray, " m"]] = {}
    found["p_value"] = [
        _p_value(value, mine, drawn, rule, memory)
        for value, mine in zip(found["mean_average_precision"], kinds, strict=True)
    ]
    found["corrected_p_value"] = false_discovery_control(found["p_value"])
    found["below_p"] = found["p_value"] < threshold
    found["below_corrected_p"] = found["corrected_p_value"] < threshold
    _warn_small_null(len(found), drawn.shape[1], threshold)
    return found


def _draws(
    pairs: np.ndarray, null_size: int, seed: int, nulls: Nulls | None
) -> Float[np.ndarray, "c m"]:
    rows = []
    for positives, negatives in pairs.tolist():
        if nulls is not None and (positives, negatives) in nulls:
            rows.append(np.asarray(nulls[positives, negatives]))
        else:
            rng = numpy_generator(seed, "average-precision-null", positives, negatives)
            rows.append(random_ap(positives, negatives, null_size, rng))
    return np.stack(rows)


def _p_value(
    value: float,
    kinds: np.ndarray,
    drawn: Float[np.ndarray, "c m"],
    rule: Rule,
    memory: dict[bytes, Float[np.ndarray, " m"]],
) -> float:
    """(1 + null means at or above the value) / (1 + size of the null)."""
    size = drawn.shape[1]
    if rule == "copairs-0.5.5":
        null = drawn.astype(np.float32)[kinds].mean(axis=0)
        return float((null > value).sum() + 1) / (size + 1)
    key = np.sort(kinds).tobytes()
    if key not in memory:
        which, count = np.unique(kinds, return_counts=True)
        memory[key] = np.sort((count / count.sum()) @ drawn[which])
    above = size - int(np.searchsorted(memory[key], value - SAME))
    return (above + 1) / (size + 1)


def _warn_small_null(num_groups: int, null_size: int, threshold: float) -> None:
    # A single group at the smallest p has q = p * groups.
    needed = int(np.ceil(num_groups / threshold)) - 1
    if null_size < needed:
        warnings.warn(
            f"a null of {null_size} draws bounds q: with {num_groups} groups a lone hit cannot get "
            f"below {num_groups / (null_size + 1):.3g} (threshold {threshold:g}); draw at least "
            f"{needed}",
            EvenfieldWarning,
            stacklevel=3,
        )
