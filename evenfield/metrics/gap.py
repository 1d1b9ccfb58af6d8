"""How much of the loss on new batches is won back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """The share of a gap that a method closes.

    Attributes:
        size: What the baseline loses from in-domain to new batches, positive = a loss.
        closed: (method - baseline) / (in-domain - baseline); 1 = all of it, below 0 = worse than
            the baseline, above 1 = better than in-domain. None where there is no gap to close.
        reason: Why `closed` is None, else "".
    """

    size: float
    closed: float | None
    reason: str = ""


def gap_closed(
    in_domain: float,
    baseline_new: float,
    method_new: float,
    *,
    direction: Literal["higher", "lower"] = "higher",
) -> Gap:
    """The share of the baseline's loss that a method wins back.

    Args:
        in_domain: The baseline on held-out wells of its own training batches.
        baseline_new: The baseline on batches that it has never seen.
        method_new: The method on the same unseen batches.
        direction: Whether the metric's `higher` or `lower` values are better.

    >>> gap_closed(0.9, 0.5, 0.8).closed
    0.75
    >>> gap_closed(0.9, 0.9, 0.8).reason
    'the baseline loses nothing on new batches, so there is no gap to close'
    """
    sign = 1.0 if direction == "higher" else -1.0
    size = sign * (in_domain - baseline_new)
    if size <= 0:
        return Gap(
            size=size,
            closed=None,
            reason="the baseline loses nothing on new batches, so there is no gap to close",
        )
    share = round(sign * (method_new - baseline_new) / size, 12)
    return Gap(size=size, closed=share)
