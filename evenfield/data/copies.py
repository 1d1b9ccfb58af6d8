"""The same numbers under two names: images or profiles that are equal to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from evenfield.data.checks import WELL_KEY
from evenfield.data.names import as_text
from evenfield.data.roles import Finding, Roles, some

SPLIT = "Metadata_Split"


def check_copies(
    manifest: pd.DataFrame, content: Sequence[bytes | None], roles: Roles, what: str
) -> Iterator[Finding]:
    """Rows of equal content: across what is held out (an error), or inside it.

    Args:
        manifest: n rows.
        content: (n,) hashes; None takes no part (a constant image equals any other).
        roles: Which column is held out.
        what: What a row is, for the message.
    """
    hashes = pd.Series(list(content), dtype=object)
    taking_part = hashes.notna().to_numpy()
    codes = np.where(taking_part, pd.factorize(hashes)[0], -1)
    size = np.bincount(codes[taking_part], minlength=1)
    copied = taking_part & (size[np.maximum(codes, 0)] > 1)
    if not copied.any():
        return
    table = manifest[copied]
    group = codes[copied]
    sides = [c for c in dict.fromkeys((roles.holdout, SPLIT)) if c in manifest]
    across = np.zeros(len(table), dtype=bool)
    for column in sides:
        across |= _differ(table[column], group)
    label = pd.Series(as_text(table[roles.label]), index=table.index)
    against = _differ(label, group)
    rows = np.flatnonzero(copied)
    names = table[WELL_KEY].astype(str).agg("/".join, axis=1)
    if across.any():
        yield Finding(
            severity="error",
            check="copies-across-splits",
            message=f"{int(across.sum())} {what} are equal to one of another "
            f"{' or '.join(sides)}: {some(sorted(set(names[across])))}",
            rows=tuple(rows[across].tolist()),
            breaks="what is held out has been trained on: every score on it is too good",
            fix="find out which name is right and leave the other rows out",
            units=tuple(sorted(set(names[across]))),
        )
    if against.any():
        yield Finding(
            severity="error",
            check="copies-with-two-labels",
            message=f"{int(against.sum())} {what} are equal to one with another {roles.label}: "
            + some(sorted(set(names[against]))),
            rows=tuple(rows[against].tolist()),
            breaks="at least one of the labels is wrong",
            fix="find out which name is right and leave the other rows out",
            units=tuple(sorted(set(names[against]))),
        )
    inside = ~across & ~against
    if inside.any():
        yield Finding(
            severity="warning",
            check="copies",
            message=f"{int(inside.sum())} {what} are equal to another: "
            + some(sorted(set(names[inside]))),
            rows=tuple(rows[inside].tolist()),
            breaks="they count more than once, and wells that share them are no replicates",
            fix="leave the copies out",
            units=tuple(sorted(set(names[inside]))),
        )


def _differ(values: pd.Series, group: np.ndarray) -> np.ndarray:
    """Whether the group of a row holds more than one value."""
    return values.astype(str).groupby(group).transform("nunique").to_numpy() > 1
