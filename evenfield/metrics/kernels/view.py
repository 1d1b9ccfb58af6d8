"""The rows of a table that a metric sees, brought to its unit, and what several metrics share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from evenfield.errors import InputError
from evenfield.metrics.kernels.nearest import Distance, Neighbours, nearest
from evenfield.metrics.kernels.pairs import MISSING, codes_of
from evenfield.metrics.kernels.similarity import content_order
from evenfield.types import Profiles

T = TypeVar("T")
Rows = Literal["treated", "controls", "all"]
Unit = Literal["well", "treatment"]
USUAL_NEIGHBOURS = 90
"""A neighbourhood is searched once, for the largest usual k; smaller ones are its beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column of the metadata plays which role; None = the table has no such column.

    Attributes:
        label: The biology that is judged (mechanism, target).
        treatment: What was put in the well, with its dose; replicates share it.
        compound: What was put in the well, whatever the dose.
        domain: What carries the batch effect (experiment, plate, laboratory).
        plate: The plate.
        well: The position on the plate; None if rows are not wells.
        control: The control type: `negcon` (and what begins with it) or True is a negative control,
            `empty` is nothing; everything else is treated.
    """

    label: str | None = "Metadata_Label"
    treatment: str | None = "Metadata_Treatment"
    compound: str | None = "Metadata_Compound"
    domain: str | None = "Metadata_Batch"
    plate: str | None = "Metadata_Plate"
    well: str | None = "Metadata_Well"
    control: str | None = "Metadata_ControlType"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A table as one metric sees it.

    Attributes:
        profiles: The rows that are left, in an order that depends on their numbers only.
        columns: Which column plays which role.
        left_out: How many rows (of the unit `well`) were dropped, by reason.
        notes: What was done to the table, in words.
        fingerprint: Equal for views of one table that hold the same rows.
        memory: What was computed and can be shared by views of the same rows.
    """

    profiles: Profiles
    columns: Columns
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fingerprint: bytes = b""
    memory: dict[Any, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.profiles)

    def column(self, role: str) -> pd.Series:
        """The column that plays a role."""
        return self.profiles.metadata[column_name(self.profiles.metadata, self.columns, role)]

    def codes(self, role: str) -> Int[np.ndarray, " n"]:
        """(n,) codes 0, 1, ... of the names in sorted order; -1 = unknown."""
        return self._coded(role)[0]

    def names(self, role: str) -> tuple[str, ...]:
        """The names that the codes stand for."""
        return self._coded(role)[1]

    def _coded(self, role: str) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
        column = self.column(role)
        return self.remember(("codes", column.name), lambda: codes_of(column))

    def neighbours(self, k: int, distance: Distance, *, foreign: str | None = None) -> Neighbours:
        """The k nearest rows (fewer in a small table); only those of other `foreign` names."""
        wanted = min(max(k, USUAL_NEIGHBOURS if foreign is None else k), len(self) - 1)

        def search() -> Neighbours:
            other = None if foreign is None else self.codes(foreign)
            return nearest(self.profiles.features, wanted, distance=distance, foreign=other)

        other = None if foreign is None else self.column(foreign).name
        found = self.remember(("neighbours", distance, other, wanted), search)
        return found.first(min(k, wanted))

    def remember(self, key: Any, compute: Callable[[], T]) -> T:
        """What was computed under this key, now or before."""
        if key not in self.memory:
            self.memory[key] = compute()
        return self.memory[key]


def column_name(metadata: pd.DataFrame, columns: Columns, role: str) -> str:
    """The column that plays a role.

    Raises:
        InputError: No column was named for it, or the table lacks it.
    """
    name = getattr(columns, role)
    if name is None or name not in metadata:
        problem = "no column was named" if name is None else f"there is no column {name}"
        raise InputError(
            f"{problem} to play the role `{role}`",
            fix=f"give Columns({role}=...), one of: {', '.join(map(str, metadata.columns))}",
        )
    return name


def controls_of(
    metadata: pd.DataFrame, columns: Columns
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Which rows are negative controls, and which are treated (neither control nor empty).

    >>> table = pd.DataFrame({"Metadata_ControlType": ["negcon", "trt", "empty", "poscon"]})
    >>> [mask.tolist() for mask in controls_of(table, Columns())]
    [[True, False, False, False], [False, True, False, True]]
    """
    if columns.control is None:
        return np.zeros(len(metadata), dtype=bool), np.ones(len(metadata), dtype=bool)
    column = metadata[column_name(metadata, columns, "control")]
    text = column.fillna("trt").astype(str).str.lower()
    control = (text.str.startswith("negcon") | (text == "true")).to_numpy()
    return control, ~control & (text != "empty").to_numpy()


def make_view(
    profiles: Profiles, columns: Columns, *, rows: Rows, unit: Unit, needs: Sequence[str]
) -> View:
    """The rows that a metric is about, complete in what it needs, at its unit.

    Raises:
        InputError: A number that is not finite, a column that is not there, rows that are not
            wells.
    """
    _check(profiles, columns)
    metadata = profiles.metadata
    control, treated = controls_of(metadata, columns)
    keep = {"treated": treated, "controls": control, "all": control | treated}[rows]
    left_out = {}
    for role in needs:
        name = column_name(metadata, columns, role)
        if role == "control":
            continue  # an empty control type means treated
        known = codes_of(metadata[name])[0] != MISSING
        if count := int((keep & ~known).sum()):
            left_out[f"no {role}"] = count
        keep = keep & known
    chosen = profiles[keep]
    fingerprint = np.packbits(keep).tobytes()
    notes: tuple[str, ...] = ()
    if unit == "treatment":
        by = [column_name(metadata, columns, "treatment")]
        if "domain" in needs:
            by.append(column_name(metadata, columns, "domain"))
        num_wells = len(chosen)
        chosen = consensus(chosen, tuple(dict.fromkeys(by)))
        notes = () if len(chosen) == num_wells else (f"medians of {num_wells} wells",)
        fingerprint += "|".join(by).encode()
    return View(
        # Whatever is drawn at random or cut at a tie must not depend on the order of the table.
        profiles=chosen[content_order(chosen.features)],
        columns=columns,
        left_out=left_out,
        notes=notes,
        fingerprint=fingerprint,
    )


def consensus(profiles: Profiles, by: Sequence[str], *, mean: bool = False) -> Profiles:
    """One profile for each group: the median (or mean) of its rows.

    Metadata that is constant within every group travels along; `Metadata_Count` is the number of
    rows.

    Args:
        profiles: (n, d).
        by: Columns that define a group.
        mean: Mean instead of median.

    Raises:
        InputError: A group column is missing, or empty in some row.
    """
    metadata = profiles.metadata
    absent = [name for name in by if name not in metadata]
    if absent:
        raise InputError(
            f"there is no column {', '.join(absent)} to group by",
            fix=f"use one of: {', '.join(map(str, metadata.columns))}",
        )
    if not len(profiles):
        return Profiles(
            features=profiles.features,
            names=profiles.names,
            metadata=metadata.assign(Metadata_Count=np.zeros(0, dtype=np.int64)),
        )
    codes = [codes_of(metadata[name])[0] for name in by]
    empty = np.flatnonzero((np.stack(codes) == MISSING).any(0))
    if len(empty):
        raise InputError(
            f"{len(empty)} rows have no {' or '.join(by)} (first: row {empty[0]})",
            fix="drop these rows or fill the column",
        )
    _, first, group, count = np.unique(
        np.stack(codes, axis=1), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(group.ravel(), kind="stable")
    features = np.empty((len(first), profiles.features.shape[1]), dtype=profiles.features.dtype)
    for number, rows in enumerate(np.split(order, count.cumsum()[:-1])):
        block = profiles.features[rows]
        features[number] = block.mean(0) if mean else np.median(block, axis=0)
    groups = metadata.groupby(group.ravel(), sort=False)
    spread = groups.nunique(dropna=False)
    constant = [name for name in spread if (spread[name] == 1).all()]
    table = metadata.loc[metadata.index[first], constant].reset_index(drop=True)
    table["Metadata_Count"] = count
    return Profiles(features=features, names=profiles.names, metadata=table)


def _check(profiles: Profiles, columns: Columns) -> None:
    bad = ~np.isfinite(profiles.features).all(axis=0)
    if bad.any():
        names = [name for name, wrong in zip(profiles.names, bad, strict=True) if wrong]
        raise InputError(
            f"{len(names)} features hold numbers that are not finite (first: {names[0]})",
            fix="drop these features, or the wells without cells, before judging",
        )
    key = [name for name in (columns.plate, columns.well) if name in profiles.metadata]
    if len(key) < 2:
        return
    repeated = profiles.metadata.duplicated(key, keep=False)
    if repeated.any():
        one = profiles.metadata.loc[repeated, key].iloc[0].astype(str)
        raise InputError(
            f"these rows are not wells: {int(repeated.sum())} rows share plate and well "
            f"(first: {'/'.join(one)})",
            fix="aggregate sites or cells to wells first, or say Columns(well=None) to score rows; "
            "name plates so that they are unique over batches",
        )
