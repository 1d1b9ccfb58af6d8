"""The grid of regimes: label shift, images and controls in a context, for every choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from evenfield.metrics.base import METRICS
from evenfield.report.plates import level
from evenfield.report.tables import Row
from evenfield.report.words import is_share, number, short_name

Regime = tuple[float | None, int | None, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of regimes.

    Attributes:
        heads: Three header lines (alpha, images, controls) of (text, how many columns).
        rows: For each choice its name and its cells.
    """

    heads: list[tuple[str, list[tuple[str, int]]]]
    rows: list[dict[str, Any]]


def regime_grid(rows: Sequence[Row]) -> Grid | None:
    """The rows of one protocol, metric and level by regime; None if there are only natural plates.

    Choices that were measured on natural plates alone are left to the table of results. The best
    choice of every regime is marked.
    """
    varied = {row.choice for row in rows if not row.is_natural}
    if not varied:
        return None
    rows = [row for row in rows if row.choice in varied]
    regimes = sorted({_regime(row) for row in rows}, key=_order)
    cells = {(row.choice, _regime(row)): row for row in rows}
    higher = METRICS[rows[0].metric].direction == "higher"
    best = {}
    for regime in regimes:
        means = [row.mean for row in rows if _regime(row) == regime]
        best[regime] = max(means) if higher else min(means)
    most = 1.0 if is_share(rows[0].metric) else max(row.mean for row in rows) or 1.0
    lines = []
    for choice in sorted({row.choice for row in rows}):
        found = []
        for regime in regimes:
            row = cells.get((choice, regime))
            if row is None:
                found.append({"text": "", "tone": "", "note": "not measured", "best": False})
                continue
            note = f"{short_name(*choice)}, {describe(regime)}: {number(row.mean, row.metric)}"
            if row.low is not None:
                note += f" ({number(row.low, row.metric)} to {number(row.high, row.metric)})"
            text = f"{100 * row.mean:.0f}" if is_share(row.metric) else f"{row.mean:.2f}"
            tone = f"r{level(row.mean / most)}"
            is_best = row.mean == best[regime]
            found.append({"text": text, "tone": tone, "note": note, "best": is_best})
        lines.append({"name": short_name(*choice), "cells": found})
    return Grid(heads=_heads(regimes), rows=lines)


def _heads(regimes: list[Regime]) -> list[tuple[str, list[tuple[str, int]]]]:
    heads = []
    for depth, name in enumerate(("label shift α", "images", "controls")):
        if all(regime[depth] is None for regime in regimes):
            continue
        parts = [
            (_text(key[-1], depth), len(list(group)))
            for key, group in groupby(regimes, key=lambda regime: regime[: depth + 1])
        ]
        heads.append((name, parts))
    return heads


def _text(value: float | int | None, depth: int) -> str:
    if value is None:
        return "as is" if depth == 0 else "all"
    return f"{value:g}"


def _regime(row: Row) -> Regime:
    return row.alpha, row.num_images, row.num_controls


def _order(regime: Regime) -> tuple[float, float, float]:
    alpha, images, controls = regime
    many = float("inf")
    return (
        -(many if alpha is None else alpha),
        many if images is None else images,
        many if controls is None else controls,
    )


def describe(regime: Regime) -> str:
    """A regime in words."""
    alpha, images, controls = regime
    return (
        f"{'class mix as is' if alpha is None else f'α = {alpha:g}'}, "
        f"{'all' if images is None else images} images, "
        f"{'all' if controls is None else controls} controls"
    )
