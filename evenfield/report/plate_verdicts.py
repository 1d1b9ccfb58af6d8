"""What a scientist should do with each plate: rules with stated thresholds, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evenfield.report.aligned import Aligned
from evenfield.report.wells import CELLS, OWN_PLATE, RETRIEVAL, Value, controls_apart
from evenfield.report.words import natural, percent, plural

FEW_CONTROLS = 4
FEW_CELLS, MANY_CELLS = 0.5, 2.0
STICKY = 3.0
"""A plate sticks together if its wells are near each other so many times oftener than by chance."""
STICKY_LEAST = 0.25
APART = 1.5
"""Controls further than so many of their own spreads from those of all plates stand apart."""
WEAK = 0.5
"""Replicates are lost where retrieval is below this share of the other plates' median."""
_RANK = {"look": 0, "few": 1, "use": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateVerdict:
    """One plate.

    Attributes:
        plate: Its name.
        batch: Its batch.
        tone: `look` (do something before using it), `few` (cannot be judged) or `use`.
        does: What to do, in a few words.
        why: The reasons.
        cells: (text, sortable) of the numbers behind it.
    """

    plate: str
    batch: str
    tone: str
    does: str
    why: tuple[str, ...]
    cells: tuple[tuple[str, str], ...]


HEADS = (
    ("plate", ""),
    ("batch", ""),
    ("what to do", ""),
    ("wells", "n"),
    ("controls", "n"),
    ("cells", "n"),
    ("controls apart", "n"),
    ("own-plate neighbours", "n"),
    ("retrieval", "n"),
)


def plate_verdicts(
    aligned: Aligned, shown: tuple[str, str], values: Sequence[Value]
) -> list[PlateVerdict]:
    """A verdict for each plate, by the table after correction; the worst first.

    Args:
        aligned: The tables.
        shown: The table before and the one after.
        values: What `wells.values` found for both.
    """
    metadata = aligned.metadata
    tables = dict(zip(aligned.names, aligned.tables, strict=True))
    apart = {name: controls_apart(tables[name]) for name in shown}
    plates = metadata["Metadata_Plate"].astype(str)
    control = metadata["Metadata_ControlType"] == "negcon"
    means = {
        (value.name, value.table): pd.Series(value.number).groupby(plates.to_numpy()).mean()
        for value in values
        if value.name in (OWN_PLATE, RETRIEVAL, CELLS)
    }
    cells = means.get((CELLS, ""))
    share = {name: means.get((OWN_PLATE, name)) for name in shown}
    found = {name: means.get((RETRIEVAL, name)) for name in shown}
    treated = plates[~control & (metadata["Metadata_ControlType"] != "empty")]
    sizes = treated.value_counts()
    verdicts = []
    for plate in sorted(set(plates), key=natural):
        mine = plates == plate
        num_controls = int((mine & control).sum())
        chance = max(sizes.get(plate, 0) - 1, 0) / max(len(treated) - 1, 1)
        told = _Told(
            num_controls=num_controls,
            has_controls=bool(control.any()),
            cells=_relative(cells, plate),
            apart=tuple(apart[name].get(plate) for name in shown),
            share=tuple(_at(share[name], plate) for name in shown),
            chance=chance,
            retrieval=tuple(_at(found[name], plate) for name in shown),
            usual=_others(found[shown[1]], plate),
        )
        tone, does, why = _judge(told)
        verdicts.append(
            PlateVerdict(
                plate=plate,
                batch=str(metadata.loc[mine, "Metadata_Batch"].iloc[0]),
                tone=tone,
                does=does,
                why=tuple(why),
                cells=(
                    (str(int(mine.sum())), str(int(mine.sum()))),
                    (str(num_controls), str(num_controls)),
                    _cell((None, _at(cells, plate)), "{:,.0f}"),
                    _cell(told.apart, "{:.1f}"),
                    _cell(told.share, "{:.0%}"),
                    _cell(told.retrieval, "{:.2f}"),
                ),
            )
        )
    return sorted(verdicts, key=lambda item: _RANK[item.tone])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What is known about one plate; pairs are before and after."""

    num_controls: int
    has_controls: bool
    cells: float | None
    apart: tuple[float | None, ...]
    share: tuple[float | None, ...]
    chance: float
    retrieval: tuple[float | None, ...]
    usual: float | None


def _judge(told: _Told) -> tuple[str, str, list[str]]:
    why: list[str] = []
    actions: list[str] = []
    if told.cells is not None and not FEW_CELLS <= told.cells <= MANY_CELLS:
        less = told.cells < FEW_CELLS
        actions.append("check seeding and segmentation")
        why.append(
            f"{told.cells:.1f} times the cells of the other plates: "
            + ("seeding, focus or a lost stain" if less else "seeding or split nuclei")
        )
    after = told.apart[1]
    if after is not None and after > APART:
        actions.append("look at the images of its controls")
        why.append(f"its controls lie {after:.1f} of their spreads from those of all plates")
    after = told.share[1]
    sticky = after is not None and after > max(STICKY_LEAST, STICKY * told.chance)
    if sticky and after is not None:
        actions.append("correct it otherwise, or compare its wells on this plate only")
        why.append(
            f"{percent(after)} of its wells' nearest are its own ({percent(told.chance)} by chance)"
        )
    lost = told.retrieval[1], told.usual
    if lost[0] is not None and lost[1] is not None and lost[0] < WEAK * lost[1]:
        actions.append("compare with a repeat before trusting hits")
        why.append(
            f"its wells find their replicates on other plates less often than the others' "
            f"({lost[0]:.2f} against a median of {lost[1]:.2f})"
        )
    if actions:
        return "look", actions[0][:1].upper() + actions[0][1:], why
    if told.has_controls and told.num_controls < FEW_CONTROLS:
        text = f"{plural(told.num_controls, 'control')}: a correction by controls is a guess"
        return "few", "Use with care; add controls next time", [text]
    if told.share[1] is None and told.apart[1] is None:
        return "few", "Cannot be judged", ["no controls, and no other plate to compare with"]
    before = told.share[0]
    if before is not None and before > max(STICKY_LEAST, STICKY * told.chance):
        return "use", "Use it corrected", ["before correction its wells lay among themselves"]
    return "use", "Use it", []


def _at(values: pd.Series | None, plate: str) -> float | None:
    if values is None or plate not in values.index or not np.isfinite(values[plate]):
        return None
    return float(values[plate])


def _others(values: pd.Series | None, plate: str) -> float | None:
    """The median over the other plates, if there are at least two."""
    if values is None:
        return None
    others = values.drop(plate, errors="ignore").dropna()
    return float(others.median()) if len(others) >= 2 else None


def _relative(values: pd.Series | None, plate: str) -> float | None:
    mine, usual = _at(values, plate), _others(values, plate)
    return None if mine is None or not usual else mine / usual


def _cell(pair: tuple[float | None, ...], form: str) -> tuple[str, str]:
    """`before → after`, or the one there is, and what a table is sorted by."""
    before, after = pair
    if after is None:
        return "–", ""

    def text(value: float) -> str:
        return form.format(value).replace("%", " %").replace(",", " ")

    shown = text(after) if before is None else f"{text(before)} → {text(after)}"
    return shown, f"{after:.6f}"
