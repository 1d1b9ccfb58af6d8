"""What each section of the page shows; a section without its artifact is None or empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from evenfield.metrics.base import METRICS
from evenfield.report.artifacts import Artifacts
from evenfield.report.embedded import script_json
from evenfield.report.embedding import Palette, embedding_map, thinned
from evenfield.report.figures import drift_plot, gap_plot
from evenfield.report.images import data_uri
from evenfield.report.mixes import mix_figure, score_lines
from evenfield.report.plates import (
    ALL,
    confusion,
    count_wells,
    plate_format,
    plate_map,
    shown_classes,
)
from evenfield.report.regimes import regime_grid
from evenfield.report.tables import BASELINE, Row, home_of
from evenfield.report.verdict import Verdict
from evenfield.report.words import (
    is_share,
    method_name,
    metric_name,
    number,
    protocol_name,
    short_name,
)

Choice = tuple[str, str]
TABLE_HEADS = (
    ("where", ""),
    ("choice", ""),
    ("measure", ""),
    ("mean", "n"),
    ("95 % interval", "n"),
    ("gain over ERM", "n"),
    ("gap closed", "n"),
    ("domains", "n"),
    ("seeds", "n"),
    ("scored", "n"),
)
_GROUPS = {"raw": "As recorded", "normalised": "After normalisation"}
_MOST_FIELDS = 12


def gaps(rows: Sequence[Row], found: Verdict, artifacts: Artifacts) -> list[dict[str, Any]]:
    """A gap plot for each protocol with unseen units, the verdict's first."""
    mine = [row for row in rows if (row.metric, row.level) == (found.metric, found.level)]
    protocols = {row.protocol for row in mine if row.protocol != home_of(row.protocol)}
    parts = []
    for protocol in sorted(protocols, key=lambda name: (name != found.protocol, name)):
        unseen = [row for row in mine if row.protocol == protocol]
        at_home = [row for row in mine if row.protocol == home_of(protocol)]
        higher = METRICS[found.metric].direction == "higher"
        best = max(unseen, key=lambda row: row.mean if higher else -row.mean)
        chance = _chance(artifacts, protocol, found)
        drawing = gap_plot(unseen, at_home, best=best, chance=chance)
        parts.append({"name": protocol_name(protocol), "drawing": drawing})
    return parts


def _chance(artifacts: Artifacts, protocol: str, found: Verdict) -> float | None:
    tables = [table for record, table in artifacts.predictions if record.protocol == protocol]
    if not tables or found.level != "image":
        return None
    codes = pd.factorize(pd.concat([table["label"] for table in tables]))[0]
    return METRICS[found.metric].chance(np.asarray(codes))


def table(rows: Sequence[Row], found: Verdict) -> list[dict[str, Any]]:
    """All rows for plates as they are; those that the verdict does not speak of start hidden."""
    lines = []
    for row in rows:
        share = is_share(row.metric)
        scale = 100 if share else 1
        gain = "–"
        if row.gain is not None:
            gain = f"{scale * row.gain:+.{1 if share else 3}f}"
            if row.gain_low is not None and row.gain_high is not None:
                low, high = scale * row.gain_low, scale * row.gain_high
                gain += f" ({low:+.{1 if share else 3}f} to {high:+.{1 if share else 3}f})"
        closed = "–" if row.gap_closed is None else f"{100 * row.gap_closed:.0f} %"
        bounds = "–"
        if row.low is not None and row.high is not None:
            bounds = f"{number(row.low, row.metric)} to {number(row.high, row.metric)}"
        kind = "base" if row.choice == BASELINE else ""
        if found.best is not None and row.choice == found.best.choice:
            kind = "best"
        measure = metric_name(row.metric) + (" (wells)" if row.level == "well" else "")
        lines.append(
            {
                "protocol": row.protocol,
                "metric": row.metric,
                "level": row.level,
                "kind": kind,
                "hidden": (row.metric, row.level) != (found.metric, found.level),
                "where": protocol_name(row.protocol),
                "name": short_name(*row.choice),
                "measure": measure,
                "cells": [
                    (number(row.mean, row.metric), f"{row.mean:.6f}"),
                    (bounds, _sortable(row.low)),
                    (gain, _sortable(row.gain)),
                    (closed, _sortable(row.gap_closed)),
                    (row.num_units, row.num_units),
                    (row.num_seeds, row.num_seeds),
                    (f"{row.num:,}".replace(",", " "), row.num),
                ],
            }
        )
    return lines


def _sortable(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def filters(rows: Sequence[Row], found: Verdict) -> list[dict[str, Any]]:
    """The filters of the table: only those with something to choose."""
    options = [
        ("where", "protocol", {row.protocol: protocol_name(row.protocol) for row in rows}, ""),
        ("measure", "metric", {row.metric: metric_name(row.metric) for row in rows}, found.metric),
        ("level", "level", {row.level: row.level for row in rows}, found.level),
    ]
    return [
        {"name": name, "column": column, "options": sorted(texts.items()), "chosen": chosen}
        for name, column, texts, chosen in options
        if len(texts) > 1
    ]


def regimes(rows: Sequence[Row], found: Verdict) -> list[dict[str, Any]]:
    """The grid of regimes for each protocol that holds one."""
    mine = [row for row in rows if (row.metric, row.level) == (found.metric, found.level)]
    parts = []
    for protocol in sorted({row.protocol for row in mine}):
        grid = regime_grid([row for row in mine if row.protocol == protocol])
        if grid is not None:
            parts.append({"name": protocol_name(protocol), "grid": grid})
    return parts


def _predictions(found: Verdict, artifacts: Artifacts) -> dict[Choice, pd.DataFrame]:
    """The predictions of every choice under the verdict's protocol, all seeds and folds."""
    tables: dict[Choice, list[pd.DataFrame]] = {}
    for record, part in artifacts.predictions:
        if record.protocol == found.protocol:
            tables.setdefault((record.method, record.adapter), []).append(part)
    return {choice: pd.concat(tables[choice], ignore_index=True) for choice in sorted(tables)}


def _before_after(found: Verdict, choices: Sequence[Choice]) -> list[Choice]:
    """ERM without adaptation, then the choice that the verdict names (where they are there)."""
    wanted = [BASELINE, *([found.best.choice] if found.best is not None else [])]
    kept = [choice for choice in dict.fromkeys(wanted) if choice in choices]
    return kept or list(choices[:1])


def plates(found: Verdict, artifacts: Artifacts) -> dict[str, Any] | None:
    """Plate maps before and after, and the numbers of every plate and choice."""
    tables = _predictions(found, artifacts)
    if not tables:
        return None
    size = plate_format(pd.concat([part["Metadata_Well"] for part in tables.values()]))
    counts = {choice: count_wells(part, size) for choice, part in tables.items()}
    keys = {choice: f"c{place}" for place, choice in enumerate(counts)}
    figures = []
    for choice in _before_after(found, list(tables)):
        wells = counts[choice].counts[ALL].values()
        right, total = (sum(pair[side] for pair in wells) for side in (0, 1))
        name = short_name(*choice)
        figures.append(
            {
                "key": keys[choice],
                "name": name,
                "drawing": plate_map(counts[choice], which=keys[choice], name=name),
                "sum": f"{100 * right / total:.0f} % of {total} right" if total else "not scored",
            }
        )
    names = dict.fromkeys(name for part in counts.values() for name in part.plates)
    data = {keys[choice]: part.to_json() for choice, part in counts.items()}
    return {
        "names": list(names),
        "choices": [(keys[choice], short_name(*choice)) for choice in counts],
        "figures": figures,
        "data": script_json(data),
    }


def matrices(found: Verdict, artifacts: Artifacts) -> dict[str, Any] | None:
    """Confusion matrices before and after."""
    tables = _predictions(found, artifacts)
    if not tables:
        return None
    pair = _before_after(found, list(tables))
    classes, left_out = shown_classes([tables[choice] for choice in pair])
    return {
        "left_out": left_out,
        "parts": [
            {"name": short_name(*choice), **confusion(tables[choice], classes)} for choice in pair
        ],
    }


def fields(artifacts: Artifacts) -> list[dict[str, Any]]:
    """Example fields by group, in the order raw, normalised."""
    if not artifacts.fields:
        return []
    arrays = artifacts.fields[0][1]
    groups = []
    for group in sorted(set(arrays["group"].tolist()), key=lambda name: (name != "raw", name)):
        images = []
        for index in np.flatnonzero(arrays["group"] == group)[:_MOST_FIELDS]:
            image = arrays["images"][index]
            images.append(
                {
                    "uri": data_uri(image),
                    "title": str(arrays["title"][index]),
                    "batch": str(arrays["batch"][index]),
                    "height": image.shape[0],
                    "width": image.shape[1],
                }
            )
        groups.append({"name": _GROUPS.get(group, group), "images": images})
    return groups


def mixes(artifacts: Artifacts) -> list[dict[str, Any]]:
    """What each ContriMix run does to images."""
    return [
        {
            "name": method_name(record.method),
            "drawing": mix_figure(arrays),
            "scores": score_lines(arrays),
        }
        for record, arrays in artifacts.mixes
    ]


def drift(artifacts: Artifacts) -> dict[str, Any] | None:
    """The drift of controls as one model sees it, averaged over its seeds and folds."""
    if not artifacts.drift:
        return None
    first = min((record.method != "erm", record.method) for record, _ in artifacts.drift)[1]
    parts = [part for record, part in artifacts.drift if record.method == first]
    table = pd.concat(parts, ignore_index=True)
    if table.empty:
        return None
    mean = table.groupby(["plate", "batch", "split"])[["shift"]].mean().reset_index()
    return {"drawing": drift_plot(mean), "name": short_name(first, "") if first else ""}


def maps(found: Verdict, artifacts: Artifacts) -> dict[str, Any] | None:
    """Embedding maps before and after, coloured alike."""
    chosen: dict[Choice, pd.DataFrame] = {}
    for record, part in artifacts.embedding:
        if len(part) and record.protocol in {"", found.protocol}:
            chosen.setdefault((record.method, record.adapter), part)
    if not chosen:
        return None
    pair = {choice: thinned(chosen[choice]) for choice in _before_after(found, list(chosen))}
    joint = pd.concat(list(pair.values()), ignore_index=True)
    batch, label = Palette.of(joint["batch"]), Palette.of(joint["label"])
    return {
        "has_controls": bool(joint["control"].any()),
        "parts": [
            {
                "name": short_name(*choice),
                "drawing": embedding_map(part, batch, label, name=short_name(*choice)),
            }
            for choice, part in pair.items()
        ],
        "legends": [
            ("batches", "b", batch.legend(set(joint["batch"]))),
            ("labels", "l", label.legend(set(joint["label"]))),
        ],
    }
