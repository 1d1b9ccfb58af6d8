"""Which rows belong to which domain, which are controls, and numbers from metadata columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from evenfield.data.names import NEGCON, as_text, map_control
from evenfield.data.roles import some
from evenfield.errors import InputError
from evenfield.types import Profiles

Rows = np.ndarray | slice


def column(profiles: Profiles, name: str, role: str) -> pd.Series:
    """A metadata column by name.

    Raises:
        InputError: The profiles have no such column; says what role it was wanted for.
    """
    if name not in profiles.metadata:
        raise InputError(
            f"the profiles have no column {name} ({role}); they have "
            f"{some(list(profiles.metadata.columns), 12)}",
            fix=f"name the column that says the {role} in the corrector's settings",
        )
    return profiles.metadata[name]


def domain_rows(profiles: Profiles, name: str | None) -> dict[str, Rows]:
    """The rows of each domain, by its name, sorted; no column means one domain called "".

    Rows that stand together come as a slice, so that taking them copies nothing.

    Raises:
        InputError: There is no such column, or a row has no domain.
    """
    if name is None:
        return {"": slice(0, len(profiles))}
    codes, values = pd.factorize(column(profiles, name, "domain"))
    texts = as_text(values)
    bad = np.flatnonzero((codes < 0) | np.isin(codes, [i for i, t in enumerate(texts) if not t]))
    if len(bad):
        raise InputError(
            f"{len(bad)} row(s) have no {name} (rows {some(bad.tolist())})",
            fix="fill the column in, or leave these rows out",
        )
    # Two spellings of one name (7 and "7") are one domain.
    merged, unique = pd.factorize(np.array(texts, dtype=object), sort=True)
    codes = merged[codes]
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(unique)))
    return {
        str(unit): _span(order[start:end])
        for unit, start, end in zip(unique, [0, *ends[:-1]], ends, strict=True)
    }


def _span(rows: np.ndarray) -> Rows:
    together = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
    return slice(int(rows[0]), int(rows[-1]) + 1) if together else rows


def control_rows(profiles: Profiles, name: str) -> Bool[np.ndarray, " n"]:
    """Which rows are negative controls: any known word for them in the column.

    Raises:
        InputError: There is no such column.
    """
    codes, values = pd.factorize(column(profiles, name, "control type"), use_na_sentinel=False)
    is_control = np.array([map_control(value) == NEGCON for value in values], dtype=bool)
    return is_control[codes] if len(codes) else np.zeros(0, dtype=bool)


def reference_rows(profiles: Profiles, reference: str, control: str) -> Bool[np.ndarray, " n"]:
    """The rows that a corrector learns from: the negative `controls`, or `all`."""
    if reference == "all":
        return np.ones(len(profiles), dtype=bool)
    return control_rows(profiles, control)


def numbers(profiles: Profiles, name: str) -> Float[np.ndarray, " n"]:
    """A metadata column as finite numbers.

    Raises:
        InputError: There is no such column, or a value is missing or no number.
    """
    values = column(profiles, name, "covariate")
    found = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise InputError(
            f"{len(bad)} value(s) of {name} are no finite numbers "
            f"(row {bad[0]}: {values.iloc[bad[0]]!r})",
            fix="fill the column in, or leave these rows or this covariate out",
        )
    return found
