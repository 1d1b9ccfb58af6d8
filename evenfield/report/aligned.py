"""Tables of the same wells, before and after correction, brought row to row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from evenfield.data.manifest import prepare_manifest
from evenfield.data.roles import some
from evenfield.errors import InputError
from evenfield.profile.aggregate import aggregate
from evenfield.report.words import natural, plural
from evenfield.types import Profiles

WELL = ("Metadata_Source", "Metadata_Plate", "Metadata_Well")
GUESSES = {
    "Metadata_Label": ("Metadata_MoA", "Metadata_MOA", "Metadata_moa", "Metadata_Mechanism",
                       "Metadata_Target", "Metadata_target", "Metadata_gene"),
    "Metadata_Compound": ("Metadata_pert_iname", "Metadata_broad_sample", "Metadata_JCP2022",
                          "Metadata_Perturbation", "Metadata_Treatment"),
    "Metadata_Treatment": ("Metadata_Perturbation", "Metadata_broad_sample", "Metadata_JCP2022"),
}  # fmt: skip
"""Other names of a role's column; the first that is there counts."""
COUNTS = ("Metadata_CellCount", "Metadata_Cell_Count", "Metadata_Count_Cells",
          "Metadata_Cells_Count", "Metadata_Object_Count", "Metadata_Nuclei_Count")  # fmt: skip
UNLIKE = 100.0
"""Features whose spreads differ by this factor have units; distances would be those of the largest.
"""
SCALED = "before, scaled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned:
    """The same wells in the same order in every table.

    Attributes:
        names: A short name for each table; the first is the one before correction.
        tables: The tables; they share one metadata in the house's form.
        count: The column with the number of cells, if there is one.
        called: What the table's own column is called for a role that has another name here.
        notes: What was done to the tables: (severity, text).
    """

    names: tuple[str, ...]
    tables: tuple[Profiles, ...]
    count: str | None
    called: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def metadata(self) -> pd.DataFrame:
        """What is known about the wells."""
        return self.tables[0].metadata


def align(
    tables: Mapping[str, Profiles],
    *,
    columns: Mapping[str, str] | None = None,
    count: str | None = None,
) -> Aligned:
    """The wells that all tables have, sorted by plate and well.

    Metadata are those of the first table. Features that are not finite somewhere are left out, rows
    of images or cells become wells (mean). Where the first table's features have unlike units, each
    is brought to mean 0 and standard deviation 1 over all rows, and its name says so: that uses
    nothing about batches.

    Args:
        tables: By name, the one before correction first.
        columns: Columns that play another role: `Metadata_Label`, `_Treatment`, `_Compound`,
            `_Batch` or `_ControlType` to the name of the column to use.
        count: The column with the number of cells; None = one of the usual names.

    Raises:
        InputError: Fewer than two tables, a column is missing, or the tables share no well.
    """
    if len(tables) < 2:
        raise InputError(
            "a comparison needs a table before correction and at least one after it",
            fix="give both: evenfield compare BEFORE AFTER",
        )
    notes: list[tuple[str, str]] = []
    wells = {name: _wells(name, table, notes) for name, table in tables.items()}
    keys = {name: _keys(table.metadata) for name, table in wells.items()}
    shared = set.intersection(*(set(key) for key in keys.values()))
    if not shared:
        raise InputError(
            f"the tables {some(list(tables))} have no well in common",
            fix="correct the table that you give first, and keep plate and well names as they are",
        )
    for name, key in keys.items():
        if len(key) > len(shared):
            text = f"{len(key) - len(shared)} of {len(key)} wells of {name} are not in all tables"
            notes.append(("warning", f"{text}, and are left out."))
    order = sorted(shared, key=lambda key: tuple(natural(part) for part in key))
    rows = {name: dict(zip(key, range(len(key)), strict=True)) for name, key in keys.items()}
    joined = {name: wells[name][[rows[name][key] for key in order]] for name in tables}
    first, *others = joined
    metadata, called = _roles(joined[first].metadata, columns or {})
    count = _count(metadata, count, notes)
    done = {name: replace(table, metadata=metadata) for name, table in joined.items()}
    plain = done[first]
    if _unlike(plain):
        done = {SCALED: _scaled(plain), **{name: done[name] for name in others}}
        notes.append(
            (
                "info",
                f"The features of {first} have unlike units. Each was brought to mean 0 and "
                "standard deviation 1 over all wells before it is judged; this takes no batch into "
                "account. Tables after correction are judged as they are.",
            )
        )
    return Aligned(
        names=tuple(done),
        tables=tuple(done.values()),
        count=count,
        called=called,
        notes=tuple(notes),
    )


def _wells(name: str, table: Profiles, notes: list[tuple[str, str]]) -> Profiles:
    finite = np.isfinite(table.features).all(axis=0)
    if not finite.all():
        lost = [feature for feature, good in zip(table.names, finite, strict=True) if not good]
        text = f"{plural(len(lost), 'feature')} of {name} with missing values"
        notes.append(("warning", f"{text} left out: {some(lost, 4)}."))
        kept = tuple(feature for feature in table.names if feature not in set(lost))
        table = table.with_features(table.features[:, finite], kept)
    lacking = [column for column in WELL[1:] if column not in table.metadata]
    if lacking or not len(table.names):
        what = f"no {' and no '.join(lacking)}" if lacking else "no feature without missing values"
        raise InputError(
            f"{name} has {what}, so its wells cannot be compared",
            fix="give profiles of wells that name plate and well, with finite features",
        )
    key = [column for column in WELL if column in table.metadata]
    if table.metadata.duplicated(key).any():
        num = len(table)
        table = aggregate(table, "well")
        notes.append(("info", f"{num} rows of {name} were averaged to {len(table)} wells."))
    return table


def _keys(metadata: pd.DataFrame) -> list[tuple[str, ...]]:
    """Source, plate and well; a table without sources has one, "1", as everywhere."""
    parts = [
        metadata[column].astype(str) if column in metadata else pd.Series("1", metadata.index)
        for column in WELL
    ]
    return list(zip(*parts, strict=True))


def _roles(
    metadata: pd.DataFrame, columns: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Metadata in the house's form, and what its columns were called in the table."""
    metadata, called = metadata.copy(), {}
    absent = [column for column in columns.values() if column not in metadata]
    if absent:
        raise InputError(
            f"there is no column {', '.join(absent)}",
            fix=f"use one of: {', '.join(map(str, metadata.columns))}",
        )
    for role, column in columns.items():
        metadata[role] = metadata[column]
        called[role] = column
    for role, names in GUESSES.items():
        found = next((name for name in names if name in metadata), None)
        if role == "Metadata_Treatment" and "Metadata_Compound" in metadata:
            continue  # compound and dose say it better
        if role not in metadata and found is not None:
            metadata[role] = metadata[found]
            called[role] = found
    metadata = prepare_manifest(metadata)
    if metadata["Metadata_Source"].nunique() > 1 and _repeated(metadata):
        metadata["Metadata_Plate"] = metadata["Metadata_Source"] + "/" + metadata["Metadata_Plate"]
    return metadata, called


def _repeated(metadata: pd.DataFrame) -> bool:
    return bool(metadata.duplicated(list(WELL[1:])).any())


def _count(metadata: pd.DataFrame, count: str | None, notes: list[tuple[str, str]]) -> str | None:
    """The column with the number of cells, where every well has one."""
    if count is not None and count not in metadata:
        raise InputError(
            f"there is no column {count} with the number of cells",
            fix=f"use one of: {', '.join(map(str, metadata.columns))}",
        )
    found = count or next((name for name in COUNTS if name in metadata), None)
    if found is None:
        notes.append(
            (
                "warning",
                "No column says how many cells a well has, so the cell-count baseline is missing: "
                "a score may come from toxicity alone. Add Metadata_CellCount, or name the column.",
            )
        )
        return None
    number = pd.to_numeric(metadata[found], errors="coerce")
    if not (np.isfinite(number) & (number >= 0)).all():
        notes.append(("warning", f"{found} is no count in every well; no cell-count baseline."))
        return None
    return found


def _spread(table: Profiles) -> np.ndarray:
    return table.features.astype(np.float64).std(axis=0)


def _unlike(table: Profiles) -> bool:
    spread = _spread(table)
    spread = spread[spread > 0]
    if len(spread) < 2:
        return False
    low, high = np.percentile(spread, [5, 95])
    return bool(high > UNLIKE * low)


def _scaled(table: Profiles) -> Profiles:
    x, spread = table.features.astype(np.float64), _spread(table)
    keep = spread > 1e-12 * np.abs(x).max(axis=0)
    names = tuple(name for name, kept in zip(table.names, keep, strict=True) if kept)
    return table.with_features((x[:, keep] - x[:, keep].mean(axis=0)) / spread[keep], names)


def level_name(column: str) -> str:
    """What one name of a column is called: `Metadata_Batch` is a batch.

    >>> level_name("Metadata_Batch"), level_name("Metadata_Source")
    ('batch', 'source')
    """
    return column.removeprefix("Metadata_").replace("_", " ").lower()


def levels(metadata: pd.DataFrame) -> list[str]:
    """What can carry a technical difference here, the coarsest first.

    Columns that divide the wells alike are one level, called by the finest (a batch of one plate is
    a plate).
    """
    found: dict[str, np.ndarray] = {}
    for column in ("Metadata_Plate", "Metadata_Batch", "Metadata_Source"):
        codes = pd.factorize(metadata[column])[0]
        same = any(np.array_equal(codes, other) for other in found.values())
        if codes.max(initial=0) > 0 and not same:
            found[column] = codes
    return list(found)[::-1]
