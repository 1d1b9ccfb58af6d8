"""Controls over plates: which plates stand apart, and whether they move with time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import spearmanr

from evenfield.data.roles import Finding, Roles

TIMES = (
    "Metadata_Timestamp", "Metadata_AcquisitionDate", "Metadata_Acquisition_Date",
    "Metadata_ImagingDate", "Metadata_Date", "Metadata_Week",
)  # fmt: skip
"""Columns that say when a plate was imaged; the first one that is there counts."""
FEWEST = 5
"""Plates without which neither an outlier nor a trend is told."""
SPREADS, P = 5.0, 0.01


def order_of(manifest: pd.DataFrame, roles: Roles) -> tuple[pd.Series, str]:
    """A number for each context that grows with time, and where it comes from.

    Without a column of times the order of the table stands in, and "" says so.
    """
    contexts = manifest[roles.context].astype(str)
    for column in TIMES:
        if column not in manifest:
            continue
        when = pd.to_numeric(manifest[column], errors="coerce")
        if when.isna().all():
            parsed = pd.to_datetime(manifest[column], errors="coerce", utc=True, format="mixed")
            when = pd.Series(parsed.astype("int64"), index=manifest.index).where(parsed.notna())
        if when.notna().all() and when.nunique() > 1:
            return when.astype(float).groupby(contexts).median(), column
    first = pd.Series(np.arange(len(manifest), dtype=float), index=manifest.index)
    return first.groupby(contexts).min(), ""


def apart(values: Float[np.ndarray, " n"], least: float) -> np.ndarray:
    """Which values lie more than five robust spreads, and more than `least`, from the median.

    >>> apart(np.array([1.0, 1.1, 0.9, 1.0, 3.0]), 0.5).tolist()
    [False, False, False, False, True]
    """
    centre = np.nanmedian(values)
    away = np.abs(values - centre)
    spread = 1.4826 * np.nanmedian(away)
    return away > np.maximum(SPREADS * spread, least)


def trend(
    manifest: pd.DataFrame, roles: Roles, values: pd.Series, what: str, *, tests: int = 1
) -> Iterator[Finding]:
    """Whether a number of the controls of each context rises or falls with time.

    Args:
        manifest: The rows.
        roles: Which column is the context.
        values: The number by context.
        what: Its name, for the message.
        tests: How many such numbers are looked at (Bonferroni).
    """
    order, column = order_of(manifest, roles)
    values = values.dropna()
    if len(values) < FEWEST or values.nunique() < 2:
        return
    when = order[values.index]
    if when.nunique() < FEWEST - 1:
        return
    rho, p = spearmanr(when.to_numpy(), values.to_numpy())
    if p * tests < P and abs(rho) >= 0.5:
        by = column if column else "the order of the table (no column says when)"
        yield Finding(
            severity="warning" if column else "info",
            check="control-drift",
            message=f"{what} of the controls {'rises' if rho > 0 else 'falls'} over "
            f"{len(values)} units of {roles.context}, by {by}: rank correlation {rho:.2f}",
            rows=(),
            breaks="what was imaged late differs from what was imaged early, whatever the "
            "treatment",
            fix="normalise per plate on controls, and hold out late batches to see what it costs",
            units=(what,),
        )


def units_apart(values: pd.Series, least: float) -> list[str]:
    """Names of the contexts whose value stands apart from the others'."""
    values = values.dropna()
    if len(values) < FEWEST:
        return []
    return sorted(map(str, values.index[apart(values.to_numpy(dtype=float), least)]))
