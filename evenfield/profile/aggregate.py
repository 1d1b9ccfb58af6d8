"""Many rows to one: images or cells to wells, wells to treatments, with their counts."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import trim_mean

from evenfield.data.roles import some
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.types import Profiles

Function = Literal["mean", "median", "trimmed"]
COUNT, CELLS = "Metadata_Count", "Metadata_CellCount"
WELL = ("Metadata_Source", "Metadata_Plate", "Metadata_Well")
_BELOW = (*WELL[1:], "Metadata_WellOriginal", "Metadata_Site", "Metadata_Object")


def aggregate(
    profiles: Profiles,
    level: Literal["well", "treatment"],
    *,
    function: Function = "mean",
    trim: float = 0.1,
    treatment: str = "Metadata_Treatment",
) -> Profiles:
    """One row a well, or one a treatment.

    Treatments are made of wells, not of images: a well with more images weighs no more.

    Metadata columns stay where each group agrees, but for those that name parts of a group: site
    and object of a well, and plate and well of a treatment. `Metadata_Count` says how many of the
    given rows are in each (of rows that have such a count: its sum). `Metadata_CellCount` of a well
    is the sum over its sites (or stays, if all rows of every well say the same), and its number of
    rows where rows are cells; that of a treatment is the mean over its wells.

    Args:
        profiles: Cells, sites or wells.
        level: What a row becomes.
        function: `mean`, `median`, or `trimmed` (the mean without the ends).
        trim: The share that `trimmed` leaves out at either end, 0 to below 0.5.
        treatment: The column that names the treatment.

    Returns:
        The groups in the order in which they first appear; features keep their type.

    Raises:
        InputError: A column is missing, a feature is NaN, or `trim` is out of its range.
    """
    if level == "well":
        return _wells(profiles, function, trim)
    if not {"Metadata_Plate", "Metadata_Well"} <= set(profiles.metadata.columns):
        wells = profiles
    else:
        wells = _wells(profiles, function, trim)
    _require(wells, [treatment], "treatment")
    cells = wells.metadata.get(CELLS)
    return pooled(wells, (treatment,), function=function, trim=trim, cells=cells, cells_by="mean")


def _wells(profiles: Profiles, function: Function, trim: float) -> Profiles:
    _require(profiles, ["Metadata_Plate", "Metadata_Well"], "well")
    metadata = profiles.metadata
    key = tuple(column for column in WELL if column in metadata)
    groups = metadata.groupby(list(key), sort=False)
    cells, how = None, "sum"
    if CELLS in metadata:
        cells = metadata[CELLS]
        # A count that was joined on by well stands in each of its rows; summing it would multiply.
        if (groups.size() > 1).any() and (groups[CELLS].nunique(dropna=False) == 1).all():
            how = "mean"
    elif _are_cells(metadata):
        cells = pd.Series(1, index=metadata.index)
    return pooled(profiles, key, function=function, trim=trim, cells=cells, cells_by=how)


def _are_cells(metadata: pd.DataFrame) -> bool:
    """Whether rows are cells: they have numbers within their field."""
    if "Metadata_Object" not in metadata:
        return False
    return bool(~metadata["Metadata_Object"].astype(str).isin(["", "0"]).all())


def pooled(
    profiles: Profiles,
    by: tuple[str, ...],
    *,
    function: Function = "mean",
    trim: float = 0.1,
    cells: pd.Series | None = None,
    cells_by: str = "sum",
) -> Profiles:
    """One row for each combination of values of some columns.

    Args:
        profiles: Any.
        by: Metadata columns.
        function: See `aggregate`.
        trim: See `aggregate`.
        cells: (n,) numbers of cells.
        cells_by: `sum` or `mean`: what becomes of them.

    Raises:
        InputError: A feature is NaN, or `trim` is out of its range.
    """
    if not 0 <= trim < 0.5:
        raise InputError(f"trim is {trim}", fix="give a share from 0 to below 0.5")
    metadata = profiles.metadata
    named = metadata[list(by)].notna().all(axis=1) & (metadata[list(by)] != "").all(axis=1)
    if not named.all():
        warnings.warn(
            f"{int((~named).sum())} of {len(named)} rows have no {' or '.join(by)} and are left "
            "out of the aggregation",
            EvenfieldWarning,
            stacklevel=3,
        )
        profiles, metadata = profiles[named.to_numpy()], metadata[named].reset_index(drop=True)
        cells = None if cells is None else cells[named].reset_index(drop=True)
    if not len(profiles):
        raise InputError(f"no row has a {' and a '.join(by)}", fix="fill these columns in")
    bad = ~np.isfinite(profiles.features)
    if bad.any():
        names = [profiles.names[i] for i in np.flatnonzero(bad.any(0))]
        raise InputError(
            f"{int(bad.any(1).sum())} row(s) hold NaN or infinite values in {len(names)} "
            f"feature(s): {some(names, 4)}",
            fix="put `select-features` first (it drops such features), or leave these rows out",
        )
    group = metadata.groupby(list(by), sort=False).ngroup().to_numpy()
    x = grouped(profiles.features, group, function=function, trim=trim)
    first = np.unique(group, return_index=True)[1]
    groups = metadata.groupby(group)
    agreed = groups.nunique(dropna=False).eq(1).all().to_numpy()
    parts = _BELOW[_BELOW.index("Metadata_Site") :] if by[-1] == WELL[-1] else _BELOW
    kept = [c for c in metadata.columns[agreed] if c in by or c not in (COUNT, CELLS, *parts)]
    told = metadata.loc[first, kept].reset_index(drop=True)
    told[COUNT] = (groups[COUNT].sum() if COUNT in metadata else groups.size()).to_numpy()
    if cells is not None:
        told[CELLS] = pd.to_numeric(cells).groupby(group).agg(cells_by).to_numpy()
    return Profiles(features=x, names=profiles.names, metadata=told)


def grouped(
    x: Float[np.ndarray, "n d"],
    group: Int[np.ndarray, " n"],
    *,
    function: Function = "mean",
    trim: float = 0.1,
) -> Float[np.ndarray, "g d"]:
    """Each group's mean, median or trimmed mean, feature by feature; computed in float64.

    >>> x = np.array([[0.0], [1.0], [9.0], [5.0]])
    >>> grouped(x, np.array([0, 0, 0, 1]), function="median").ravel().tolist()
    [1.0, 5.0]
    """
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0])
    ends = np.r_[starts[1:], len(group)]
    found = np.empty((len(starts), x.shape[1]), dtype=x.dtype)
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        own = x[order[start:end]].astype(np.float64)
        if function == "mean":
            found[number] = own.mean(0)
        elif function == "median":
            found[number] = np.median(own, axis=0)
        else:
            found[number] = trim_mean(own, trim, axis=0)
    return found


def _require(profiles: Profiles, columns: list[str], level: str) -> None:
    lacking = [column for column in columns if column not in profiles.metadata]
    if lacking:
        raise InputError(
            f"the profiles have no column {', '.join(lacking)}, so a row cannot become a {level}; "
            f"they have {some(list(profiles.metadata.columns), 8)}",
            fix="rename the column that says it",
        )
