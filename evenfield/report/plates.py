"""Right and wrong by well, in plate layout, and by class, as confusion matrices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from evenfield.report.svg import drawing, element, title
from evenfield.report.words import natural

FORMATS = ((8, 12), (16, 24), (32, 48))
ALL = "all plates"
MOST_CLASSES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateCounts:
    """Right predictions by well, for every plate.

    Attributes:
        rows: Rows of the plate format.
        columns: Columns of the plate format.
        plates: Plate names in natural order, `all plates` first.
        counts: Plate to (right, scored) by well number (row-major).
    """

    rows: int
    columns: int
    plates: list[str]
    counts: dict[str, dict[int, tuple[int, int]]]

    def to_json(self) -> dict[str, list[list[int]]]:
        """Plate to [well number, right, scored]."""
        return {
            plate: [[well, *self.counts[plate][well]] for well in sorted(self.counts[plate])]
            for plate in self.plates
        }


def plate_format(wells: pd.Series) -> tuple[int, int]:
    """The smallest of 96, 384 and 1,536 wells that holds all names."""
    places = [well_place(str(well)) for well in wells.unique()]
    rows = max((place[0] for place in places if place), default=0)
    columns = max((place[1] for place in places if place), default=0)
    return next((size for size in FORMATS if rows < size[0] and columns < size[1]), FORMATS[-1])


def well_place(well: str) -> tuple[int, int] | None:
    """Row and column from 0; None where it is no well name.

    >>> well_place("B03"), well_place("AF48"), well_place("?")
    ((1, 2), (31, 47), None)
    """
    found = re.fullmatch(r"([A-Z]{1,2})([0-9]{1,2})", well)
    if found is None:
        return None
    row = 0
    for letter in found[1]:
        row = 26 * row + ord(letter) - 64
    return row - 1, int(found[2]) - 1


def row_name(row: int) -> str:
    """A to Z, AA to AF.

    >>> row_name(0), row_name(25), row_name(31)
    ('A', 'Z', 'AF')
    """
    return chr(65 + row) if row < 26 else "A" + chr(65 + row - 26)


def count_wells(table: pd.DataFrame, size: tuple[int, int]) -> PlateCounts:
    """Count right predictions by plate and well.

    Args:
        table: Predictions of one choice (all seeds and folds).
        size: Rows and columns of the plate format.
    """
    counts: dict[str, dict[int, tuple[int, int]]] = {ALL: {}}
    columns = (table[name].astype(str) for name in ("Metadata_Plate", "Metadata_Well"))
    right = (table["label"] == table["predicted"]).tolist()
    for plate, well, hit in zip(*columns, right, strict=True):
        place = well_place(well)
        if place is None or place[0] >= size[0] or place[1] >= size[1]:
            continue
        number = place[0] * size[1] + place[1]
        for name in (plate, ALL):
            hits, total = counts.setdefault(name, {}).get(number, (0, 0))
            counts[name][number] = (hits + hit, total + 1)
    names = sorted(counts.keys() - {ALL}, key=natural)
    return PlateCounts(rows=size[0], columns=size[1], plates=[ALL, *names], counts=counts)


def level(share: float) -> int:
    """The colour step of a share, 0 to 10 (the page's script rounds in the same way)."""
    return int(share * 10 + 0.5)


def plate_map(counts: PlateCounts, *, which: str, name: str) -> Markup:
    """A plate seen from above; the page's script redraws it for another plate."""
    wells = counts.counts.get(ALL, {})

    def cell(number: int) -> tuple[str, str]:
        right, total = wells.get(number, (0, 0))
        return (f"q{level(right / total)}" if total else "qe"), _share(right, total)

    label = f"Share of right predictions by well, {name}."
    return well_grid((counts.rows, counts.columns), cell, label=label, class_=which)


def well_grid(
    size: tuple[int, int], cell: Callable[[int], tuple[str, str]], *, label: str, class_: str
) -> Markup:
    """The wells of a plate as squares, with names of rows and columns.

    Args:
        size: Rows and columns.
        cell: From a well's number (row-major) to its colour's class and what the pointer shows.
        label: The text alternative.
        class_: Of the drawing.
    """
    rows, columns = size
    width = 470.0
    side = (width - 22) / columns
    gap = 1.5 if columns <= 24 else 0.6
    every = 1 if columns <= 24 else 4
    parts = [
        element("text", column + 1, x=22 + side * (column + 0.5), y=12, class_="tick small middle")
        for column in range(0, columns, every)
    ]
    for row in range(rows):
        y = 18 + side * row
        if row % every == 0:
            text = {"x": 16, "y": y + side / 2 + 3.5, "class_": "tick small end"}
            parts.append(element("text", row_name(row), **text))
        for column in range(columns):
            tone, told = cell(row * columns + column)
            inside = title(f"{row_name(row)}{column + 1:02d}: {told}")
            box = {"x": 22 + side * column, "y": y, "width": side - gap, "height": side - gap}
            parts.append(element("rect", inside, **box, rx=1.5, class_=f"well {tone}"))
    height = 18 + side * rows
    return drawing(parts, width=width, height=height, label=label, class_=f"plate {class_}")


def _share(right: int, total: int) -> str:
    return f"{right} of {total} right" if total else "not scored"


def confusion(table: pd.DataFrame, classes: Sequence[str]) -> dict[str, Any]:
    """Rows: true classes; columns: predicted ones; shares of the row in whole percent.

    Args:
        table: Predictions of one choice.
        classes: Which classes are shown, in order.
    """
    counts = Counter(zip(table["label"].astype(str), table["predicted"].astype(str), strict=True))
    totals = Counter(table["label"].astype(str))
    rows = []
    for index, true in enumerate(classes):
        total = totals[true]
        cells = []
        for place, called in enumerate(classes):
            hits = counts[true, called]
            share = hits / total if total else 0.0
            text = f"{100 * share:.0f}" if round(100 * share) else ""
            tone = f"{'r' if place == index else 'w'}{level(share)}"
            note = f"{true} called {called}: {hits} of {total}"
            cells.append({"text": text, "tone": tone, "note": note})
        rows.append({"number": index + 1, "name": true, "total": total, "cells": cells})
    return {"rows": rows, "numbers": range(1, len(classes) + 1)}


def shown_classes(tables: Sequence[pd.DataFrame]) -> tuple[list[str], int]:
    """The classes of the confusion matrices (the most frequent 24) and how many are left out."""
    counts = Counter(str(name) for table in tables for name in table["label"])
    kept = sorted(counts, key=lambda name: (-counts[name], natural(name)))
    shown = sorted(kept[:MOST_CLASSES], key=natural)
    return shown, len(kept) - len(shown)
