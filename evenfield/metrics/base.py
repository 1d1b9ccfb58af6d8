"""What a metric is: a pure function that states how to read it. Two contracts:

`Metric` scores log-probabilities against labels; `ProfileMetric` scores a table of profiles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from evenfield.errors import InputError
from evenfield.metrics.kernels.view import Columns, Rows, Unit, View, make_view
from evenfield.registry import Registry
from evenfield.types import Profiles

LogProbs = Float[np.ndarray, "n k"]
Labels = Int[np.ndarray, " n"]


class Metric(ABC):
    """The contract of a metric.

    Attributes:
        direction: Whether `higher` or `lower` is better.
        bounds: The least and the greatest possible value.
        needs: `labels` (only the predicted class counts) or `probabilities`.
    """

    name: ClassVar[str]
    direction: ClassVar[Literal["higher", "lower"]] = "higher"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[Literal["labels", "probabilities"]] = "labels"

    def __call__(self, log_probs: LogProbs, labels: Labels) -> float:
        """Score predictions.

        Args:
            log_probs: (n, k) natural logarithms of class probabilities; -inf is a zero.
            labels: (n,) class codes, all known.

        Raises:
            InputError: Nothing to score, a NaN, rows that are not probabilities, an unknown label.
        """
        log_probs, labels = checked(log_probs, labels)
        return float(self.compute(log_probs, labels))

    @staticmethod
    @abstractmethod
    def compute(log_probs: LogProbs, labels: Labels) -> float:
        """The value for checked float64 log-probabilities (n, k) and labels (n,)."""

    @staticmethod
    @abstractmethod
    def chance(labels: Labels) -> float:
        """What the best prediction that ignores the image reaches, for these labels (n,)."""


METRICS: Registry[Metric] = Registry("metric", package="evenfield.metrics")


def checked(log_probs: LogProbs, labels: Labels) -> tuple[LogProbs, Labels]:
    """Float64 log-probabilities (n, k) and int64 labels (n,), or an error that says why not."""
    log_probs = checked_log_probs(log_probs)
    labels = np.asarray(labels)
    if labels.shape != (len(log_probs),):
        raise InputError(
            f"{len(log_probs)} rows of log-probabilities meet labels of shape {labels.shape}",
            fix="give one label for each row",
        )
    if labels.dtype.kind not in "iu":
        raise InputError(
            f"labels have the type {labels.dtype}, not integers", fix="give class codes"
        )
    unknown = np.flatnonzero((labels < 0) | (labels >= log_probs.shape[1]))
    if len(unknown):
        raise InputError(
            f"{len(unknown)} labels are unknown to a model of {log_probs.shape[1]} classes "
            f"(first: row {unknown[0]}, code {labels[unknown[0]]})",
            fix="score only rows whose label is one of the model's classes, and count the others",
        )
    return log_probs, labels.astype(np.int64)


def checked_log_probs(log_probs: LogProbs) -> LogProbs:
    """Float64 log-probabilities (n, k) whose rows are distributions, or an error."""
    log_probs = np.asarray(log_probs, dtype=np.float64)
    if log_probs.ndim != 2 or 0 in log_probs.shape:
        raise InputError(
            f"there is nothing to score: log-probabilities have the shape {log_probs.shape}",
            fix="give an array (n, k) with at least one row and one class",
        )
    bad = np.flatnonzero(np.isnan(log_probs).any(1))
    if len(bad):
        raise InputError(
            f"{len(bad)} rows of log-probabilities hold NaN (first: row {bad[0]})",
            fix="look for non-finite pixels or a diverged model",
        )
    with np.errstate(over="ignore"):
        total = np.exp(log_probs).sum(1)
    # 1 % leaves room for half precision; logits that were never normalised are far outside.
    bad = np.flatnonzero(~(np.abs(total - 1) <= 0.01))
    if len(bad):
        raise InputError(
            f"{len(bad)} rows are not log-probabilities (row {bad[0]} sums to {total[bad[0]]:.3g})",
            fix="apply log_softmax over the classes first",
        )
    return log_probs


def evaluate(
    log_probs: LogProbs, labels: Labels, metrics: Iterable[str] | None = None
) -> dict[str, float]:
    """Several metrics by name (default: all that are registered)."""
    names = METRICS if metrics is None else metrics
    return {name: METRICS[name]()(log_probs, labels) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """One measured number about a table of profiles, with all that is needed to read it.

    Attributes:
        metric: A name of `PROFILE_METRICS`.
        value: The number; None if nothing could be scored.
        chance: What features that know nothing of the question would reach, on the same rows.
        ceiling: The best value that these rows allow.
        num: The denominator: how many items were scored.
        unit: What an item is: well, treatment, label, ...
        direction: Whether `higher` or `lower` is better.
        bounds: The least and the greatest possible value.
        left_out: How many rows or items were not scored, by reason.
        also: The same with another denominator or reading: name -> (value, denominator).
        notes: What else a reader must know.
        items: One row for each scored item: `score`, and metadata to group by for an interval.
    """

    metric: str
    value: float | None
    chance: float | None
    ceiling: float
    num: int
    unit: str
    direction: Literal["higher", "lower"] = "higher"
    bounds: tuple[float, float] = (0.0, 1.0)
    left_out: Mapping[str, int] = field(default_factory=dict)
    also: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    items: pd.DataFrame = field(default_factory=pd.DataFrame)


class ProfileMetric(ABC):
    """The contract of a metric of profiles: `metric(profiles) -> Score`.

    Attributes:
        direction: Whether `higher` or `lower` is better.
        bounds: The least and the greatest possible value.
        aspect: Whether it looks at `biology` (kept?) or `batch` (removed?); never report one alone.
        rows: Which rows it is about.
        unit: What a row must be: wells as they are, or treatments (medians are taken).
        needs: The roles that every row must fill; rows that do not are left out and counted.
        chance: How the chance level is found, in words.
    """

    name: ClassVar[str]
    direction: ClassVar[Literal["higher", "lower"]] = "higher"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    aspect: ClassVar[Literal["biology", "batch"]]
    rows: ClassVar[Rows] = "treated"
    unit: ClassVar[Unit] = "well"
    needs: ClassVar[tuple[str, ...]] = ()
    chance: ClassVar[str]

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """A metric without settings."""

    def __init__(self, config: Any = None, *, columns: Columns | None = None) -> None:
        self.config: Any = self.Config() if config is None else config
        self.columns = Columns() if columns is None else columns

    def __call__(self, profiles: Profiles) -> Score:
        """Score a table of wells.

        Raises:
            InputError: A column or a finite number is missing, or rows are not wells.
        """
        return self.compute(self.view(profiles))

    def view(self, profiles: Profiles) -> View:
        """The rows that this metric is about."""
        return make_view(profiles, self.columns, rows=self.rows, unit=self.unit, needs=self.needs)

    @abstractmethod
    def compute(self, view: View) -> Score:
        """The score of a view; the rows have finite features and all roles in `needs`."""

    def score(
        self,
        view: View,
        *,
        value: float | None,
        num: int,
        chance: float | None,
        unit: str | None = None,
        ceiling: float | None = None,
        left_out: Mapping[str, int] | None = None,
        notes: tuple[str, ...] = (),
        **others: Any,
    ) -> Score:
        """A score with what the class and the view know filled in."""
        best = self.bounds[1] if self.direction == "higher" else self.bounds[0]
        return Score(
            metric=self.name,
            value=value,
            chance=chance,
            ceiling=best if ceiling is None else ceiling,
            num=num,
            unit=unit or self.unit,
            direction=self.direction,
            bounds=self.bounds,
            left_out={k: v for k, v in {**view.left_out, **(left_out or {})}.items() if v},
            notes=(*view.notes, *notes),
            **others,
        )


PROFILE_METRICS: Registry[ProfileMetric] = Registry("profile metric", package="evenfield.metrics")


def evaluate_profiles(
    profiles: Profiles,
    metrics: Iterable[str | ProfileMetric],
    columns: Columns | None = None,
) -> dict[str, Score]:
    """Several metrics of one table; neighbours are searched once for all of them.

    Args:
        profiles: (n, d) wells.
        metrics: Names of `PROFILE_METRICS`, or metrics that were made with settings.
        columns: Which column plays which role, for those given by name.
    """
    memories: dict[bytes, dict[Any, Any]] = {}
    found = {}
    for item in metrics:
        metric = PROFILE_METRICS[item](columns=columns) if isinstance(item, str) else item
        view = metric.view(profiles)
        shared = memories.setdefault(view.fingerprint, view.memory)
        found[metric.name] = metric.compute(replace(view, memory=shared))
    return found
