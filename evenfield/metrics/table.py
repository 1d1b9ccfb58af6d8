"""The scoreboard: rows that can be read, and one combined number that says what is in it.

Rules:
    complete    A row without a denominator, a chance level or the name of the correction (and what
                it was fitted on) is refused.
    alone       A batch score never stands without a biology score of the same correction.
    combined    total = 0.6 mean of biology + 0.4 mean of batch (the weights of Luecken et al. 2022
                and Arevalo et al. 2024), of a FIXED list of members. Each is scaled by its own
                declared bounds, never by the best and worst rival: a row's total does not change
                when another row comes or goes. Totals of different members are not comparable, and
                the members are printed with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from evenfield.errors import InputError
from evenfield.metrics.base import PROFILE_METRICS, Score

BIOLOGY = ("silhouette-label", "clisi", "kmeans-nmi", "kmeans-ari")
BATCH = ("bras", "ilisi", "kbet", "graph-connectivity", "pcr-batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One correction judged by one metric.

    Attributes:
        correction: What was done to the profiles; `none` is a name, too.
        fitted_on: The rows it was fitted on: `controls`, `all wells`, `training weeks`, `-`, ...
        score: The number and how to read it.
        low: Lower end of an interval over treatments or domains, if there is one.
        high: Upper end.
        interval_unit: What was resampled for it.
    """

    correction: str
    fitted_on: str
    score: Score
    low: float | None = None
    high: float | None = None
    interval_unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """A weighted mean of metrics.

    Attributes:
        total: From 0 to 1, 1 being best.
        biology: Mean of the scaled biology members.
        batch: Mean of the scaled batch members.
        members: Each member's scaled value and its weight in the total.
    """

    total: float
    biology: float
    batch: float
    members: Mapping[str, tuple[float, float]]

    def __str__(self) -> str:
        parts = [
            f"{name} {value:.3f} x {weight:.3f}" for name, (value, weight) in self.members.items()
        ]
        return f"{self.total:.3f} = " + " + ".join(parts)


def scaled(score: Score) -> float:
    """A value on its declared bounds, 0 = worst and 1 = best; what is below 0 counts as 0.

    >>> scaled(Score(metric="x", value=0.2, chance=0.0, ceiling=0.0, num=9, unit="well",
    ...              direction="lower"))
    0.8
    """
    if score.value is None:
        raise InputError(
            f"{score.metric} could not be scored ({dict(score.left_out)}, {score.notes})",
            fix="combine metrics that this table can be judged by",
        )
    low, high = max(score.bounds[0], 0.0), score.bounds[1]
    share = min(max((score.value - low) / (high - low), 0.0), 1.0)
    return share if score.direction == "higher" else 1 - share


def combine(
    scores: Mapping[str, Score],
    *,
    biology: Iterable[str] = BIOLOGY,
    batch: Iterable[str] = BATCH,
    biology_weight: float = 0.6,
) -> Combined:
    """The combined number of one correction.

    Args:
        scores: By name of the metric, from `evaluate_profiles`.
        biology: Members that look at biology.
        batch: Members that look at the batch.
        biology_weight: The weight of the mean of biology; the batch has the rest.

    Raises:
        InputError: A member is missing or has no value, or is on the wrong side.
    """
    sides = {"biology": tuple(biology), "batch": tuple(batch)}
    members: dict[str, tuple[float, float]] = {}
    means = {}
    for side, names in sides.items():
        absent = [name for name in names if name not in scores]
        wrong = [name for name in names if PROFILE_METRICS[name].aspect != side]
        if absent or wrong or not names:
            raise InputError(
                f"the {side} side of a combined score: missing {absent}, of the other side {wrong}",
                fix="score every member first; leaving one out silently would change what the "
                "total means",
            )
        weight = (biology_weight if side == "biology" else 1 - biology_weight) / len(names)
        values = [scaled(scores[name]) for name in names]
        members |= {name: (value, weight) for name, value in zip(names, values, strict=True)}
        means[side] = sum(values) / len(values)
    total = sum(value * weight for value, weight in members.values())
    return Combined(total=total, biology=means["biology"], batch=means["batch"], members=members)


@dataclass(slots=True)
class Scoreboard:
    """Rows that were accepted.

    Attributes:
        rows: In the order they came.
    """

    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Accept a row that can be read.

        Raises:
            InputError: No denominator, no chance level, no correction, or no rows it was fitted on.
        """
        score = row.score
        lacking = [
            what
            for what, there in (
                ("a denominator", score.num > 0 and score.value is not None),
                ("a chance level", score.chance is not None),
                ("the name of the correction", bool(row.correction.strip())),
                ("the rows that the correction was fitted on", bool(row.fitted_on.strip())),
            )
            if not there
        ]
        if lacking:
            raise InputError(
                f"a row of {score.metric} ({row.correction or 'no name'}) lacks "
                f"{' and '.join(lacking)}",
                fix="a number without them cannot be read; `none` and `-` are allowed names for no "
                f"correction. Left out were: {dict(score.left_out) or 'nothing'}",
            )
        self.rows.append(row)

    def table(self) -> pd.DataFrame:
        """One line for each row.

        Raises:
            InputError: A correction has batch scores and no biology score.
        """
        aspects: dict[str, set[str]] = {}
        for row in self.rows:
            aspect = PROFILE_METRICS[row.score.metric].aspect
            aspects.setdefault(row.correction, set()).add(aspect)
        alone = sorted(name for name, seen in aspects.items() if seen == {"batch"})
        if alone:
            raise InputError(
                f"batch scores without a biology score: {', '.join(alone)}",
                fix="noise mixes perfectly: add a biology metric for the same correction",
            )
        return pd.DataFrame([_line(row) for row in self.rows])


def _line(row: Row) -> dict[str, object]:
    score = row.score
    return {
        "correction": row.correction,
        "fitted_on": row.fitted_on,
        "metric": score.metric,
        "aspect": PROFILE_METRICS[score.metric].aspect,
        "value": score.value,
        "low": row.low,
        "high": row.high,
        "interval_unit": row.interval_unit,
        "chance": score.chance,
        "ceiling": score.ceiling,
        "direction": score.direction,
        "num": score.num,
        "unit": score.unit,
        "also": "; ".join(
            f"{name} {value:.3f} of {num}" for name, (value, num) in score.also.items()
        ),
        "left_out": "; ".join(f"{count} {reason}" for reason, count in score.left_out.items()),
        "notes": "; ".join(score.notes),
    }
