"""What a metric is: a pure function of log-probabilities and labels that states how to read it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from evenfield.errors import InputError
from evenfield.registry import Registry

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
