"""Percent replicating and percent matching: is a group more alike than random groups of its size?

Way et al., "Morphology and gene expression profiling provide complementary information for mapping
cell state", Cell Systems 2022, https://doi.org/10.1016/j.cels.2022.10.001; the threshold as in the
package cytominer-eval: a group counts if the median Pearson correlation of its pairs exceeds the
95th percentile of that median in groups of unlike rows.

Where this file departs from released code, and why:
    null groups   Have as many rows as the group they are compared with, and the median is taken
                  over the same pairs (the median of few pairs spreads more); each row is of another
                  treatment (or label).
    large groups  Of more than 100 rows 100 are drawn at random, of positive controls for example.
    share at 5 %  What chance reaches, by construction. Mean average precision (`map-...`) says
                  more; these two are here because reports still ask for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from evenfield.errors import InputError
from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.kernels.similarity import unit_rows
from evenfield.metrics.kernels.view import View
from evenfield.seeds import numpy_generator

NUMBERS_AT_ONCE = 2**24
LARGEST_GROUP = 100


def pair_correlations(
    unit: Float[np.ndarray, "n d"], groups: Int[np.ndarray, "g m"]
) -> Float[np.ndarray, "g p"]:
    """The products of all pairs of rows of each group, in the order of `np.triu_indices(m, 1)`.

    Args:
        unit: (n, d) rows of length 1 and mean 0: products are Pearson correlations.
        groups: (g, m) rows of each group.

    >>> unit = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> pair_correlations(unit, np.array([[0, 1, 2]])).tolist()
    [[1.0, 0.0, 0.0]]
    """
    num, size = groups.shape
    a, b = np.triu_indices(size, 1)
    found = np.empty((num, len(a)), dtype=np.float32)
    step = max(1, NUMBERS_AT_ONCE // (size * unit.shape[1]))
    for start in range(0, num, step):
        block = unit[groups[start : start + step]]
        found[start : start + step] = (block @ block.transpose(0, 2, 1))[:, a, b]
    return found


def unlike_groups(
    code: Int[np.ndarray, " n"], size: int, num: int, rng: np.random.Generator
) -> Int[np.ndarray, "g m"]:
    """Random groups whose rows all have different codes: first the codes, then a row of each.

    Raises:
        InputError: There are fewer codes than rows in a group.
    """
    order = np.argsort(code, kind="stable")
    count = np.bincount(code)
    if len(count) < size:
        raise InputError(
            f"a random group of {size} unlike rows needs {size} different names, and there are "
            f"{len(count)}",
            fix="score a table with more treatments, or use mean average precision",
        )
    picked = np.stack([rng.choice(len(count), size, replace=False) for _ in range(num)])
    inside = rng.integers(count[picked])
    return order[(count.cumsum() - count)[picked] + inside]


class AboveNull(ProfileMetric):
    """What percent replicating and percent matching share."""

    aspect = "biology"
    chance = "one minus the quantile, by construction"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of percent replicating and matching.

        Attributes:
            quantile: Of the null, which the median correlation of a group must exceed.
            null_size: Random groups for each size of group.
            seed: Of the random groups.
        """

        quantile: float = 0.95
        null_size: int = 1000
        seed: int = 0

    def above(
        self,
        view: View,
        code: Int[np.ndarray, " n"],
        names: tuple[str, ...],
        apart: Int[np.ndarray, " n"] | None,
        unit: str,
    ) -> Score:
        """The share of groups (rows of one code) above the null of their size."""
        features = np.asarray(view.profiles.features, dtype=np.float64)
        unit_nd = unit_rows(features - features.mean(axis=1, keepdims=True), np.float32)
        count = np.bincount(code, minlength=len(names))
        median, limit = np.full((2, len(names)), np.nan)
        for size in np.unique(np.minimum(count[count >= 2], LARGEST_GROUP)).tolist():
            rng = numpy_generator(self.config.seed, self.name, size)
            mine = np.flatnonzero(np.minimum(count, LARGEST_GROUP) == size)
            rows = np.stack([_some(np.flatnonzero(code == group), size, rng) for group in mine])
            value = pair_correlations(unit_nd, rows)
            a, b = np.triu_indices(size, 1)
            allowed = np.ones(value.shape, dtype=bool)
            if apart is not None:
                allowed = apart[rows[:, a]] != apart[rows[:, b]]
            for group, numbers, which in zip(mine, value, allowed, strict=True):
                median[group] = np.median(numbers[which]) if which.any() else np.nan
            if len(names) < size:
                continue
            null = pair_correlations(unit_nd, unlike_groups(code, size, self.config.null_size, rng))
            limits = {
                which.tobytes(): np.quantile(
                    np.median(null[:, which], axis=1), self.config.quantile
                )
                for which in np.unique(allowed[allowed.any(1)], axis=0)
            }
            limit[mine] = [limits.get(which.tobytes(), np.nan) for which in allowed]
        scored = np.isfinite(median) & np.isfinite(limit)
        num = int(scored.sum())
        above = median[scored] > limit[scored]
        items = pd.DataFrame(
            {
                view.column(unit).name: np.array(names, dtype=object)[scored],
                "score": above.astype(np.float64),
                "median": median[scored],
                "null_quantile": limit[scored],
            }
        )
        return self.score(
            view,
            value=float(above.mean()) if num else None,
            num=num,
            chance=1 - self.config.quantile if num else None,
            unit=unit,
            left_out={
                f"{unit} without a pair": int(np.isnan(median).sum()),
                f"{unit} with more rows than there are names": int(
                    (np.isfinite(median) & np.isnan(limit)).sum()
                ),
            },
            notes=(f"null: {self.config.null_size} random groups of the same size",),
            items=items,
        )


@PROFILE_METRICS.register("percent-replicating")
class PercentReplicating(AboveNull):
    """Share of treatments whose replicate wells correlate more than unlike wells do."""

    needs = ("treatment",)

    def compute(self, view: View) -> Score:
        """Groups are treatments; a treatment with one well is left out."""
        return self.above(view, view.codes("treatment"), view.names("treatment"), None, "treatment")


@PROFILE_METRICS.register("percent-matching")
class PercentMatching(AboveNull):
    """Share of labels whose DIFFERENT compounds correlate more than those of other labels."""

    unit = "treatment"
    needs = ("treatment", "compound", "label")

    def compute(self, view: View) -> Score:
        """Groups are labels, rows treatments; pairs of one compound do not count."""
        return self.above(
            view, view.codes("label"), view.names("label"), view.codes("compound"), "label"
        )


def _some(
    rows: Int[np.ndarray, " n"], size: int, rng: np.random.Generator
) -> Int[np.ndarray, " m"]:
    return rows if len(rows) == size else np.sort(rng.choice(rows, size, replace=False))
