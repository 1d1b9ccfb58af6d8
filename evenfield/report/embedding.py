"""The map of the embedding: one set of marks that can be coloured by batch or by label."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from markupsafe import Markup

from evenfield.report.svg import drawing, element, title
from evenfield.report.words import natural

NUM_COLOURS = 12
"""Colours of the palette; the last one, grey, is for all that is left."""
MOST_MARKS = 2500
SIDE = 470.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """Which colour a name has; the most frequent names have their own."""

    codes: dict[str, int]

    @classmethod
    def of(cls, names: pd.Series) -> Palette:
        """Colours for names, stable under the order of rows."""
        counts = Counter(names.astype(str))
        kept = sorted(counts, key=lambda name: (-counts[name], natural(name)))
        if len(kept) > NUM_COLOURS - 1:
            kept = kept[: NUM_COLOURS - 1]
        return cls(codes={name: code for code, name in enumerate(sorted(kept, key=natural))})

    def code(self, name: str) -> int:
        """The colour of a name."""
        return self.codes.get(name, NUM_COLOURS - 1)

    def legend(self, names: set[str]) -> list[tuple[int, str]]:
        """Colour and text of each entry."""
        others = len(names - self.codes.keys())
        entries = [(code, name) for name, code in self.codes.items()]
        return [*entries, *([(NUM_COLOURS - 1, f"{others} others")] if others else [])]


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """At most 2,500 rows, evenly spaced, so that a page stays small."""
    step = -(-len(table) // MOST_MARKS)
    return table.iloc[::step]


def embedding_map(table: pd.DataFrame, batch: Palette, label: Palette, *, name: str) -> Markup:
    """Marks at (x, y): rings were trained on, disks are new, squares are controls."""
    table = table.sort_values("split", ascending=False, kind="stable")  # new ones on top
    x, y = (_scaled(table[axis].to_numpy(dtype=float)) for axis in ("x", "y"))
    parts = [element("rect", x=0.5, y=0.5, width=SIDE - 1, height=SIDE - 1, rx=6, class_="frame")]
    for row, across, down in zip(table.itertuples(), x, y, strict=True):
        text = title(f"{row.label} · batch {row.batch} · plate {row.plate} ({row.split})")
        codes = f"b{batch.code(str(row.batch))} l{label.code(str(row.label))}"
        class_ = f"{'seen' if row.split == 'train' else 'unseen'} {codes}"
        if row.control:
            box = {"x": across - 2.6, "y": down - 2.6, "width": 5.2, "height": 5.2}
            parts.append(element("rect", text, **box, class_=class_))
        else:
            parts.append(element("circle", text, cx=across, cy=down, r=3, class_=class_))
    alternative = (
        f"Map of {len(table)} images for {name}: {table['batch'].nunique()} batches, "
        f"{table['label'].nunique()} labels."
    )
    return drawing(parts, width=SIDE, height=SIDE, label=alternative, class_="map")


def _scaled(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    low, high = values.min(), values.max()
    return 12 + (SIDE - 24) * (values - low) / max(high - low, 1e-9)
