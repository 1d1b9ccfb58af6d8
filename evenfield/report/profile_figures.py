"""Pictures of a comparison: intervals for each question, mixing against biology, maps, plates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from markupsafe import Markup

from evenfield.report.plates import well_grid, well_place
from evenfield.report.questions import CELL_COUNT, Asked
from evenfield.report.svg import drawing, element, title
from evenfield.report.words import cut, percent

WIDTH, SIDE = 520.0, 470.0
NUM_STEPS = 10
"""Colour steps of a plate map above the lowest."""


def decimals(asked: Asked, value: float) -> str:
    """A number as this question is read: shares in percent, mean average precision to 0.001."""
    return f"{value:.3f}" if "precision" in asked.question.measure else percent(value)


def axis_end(values: Sequence[float]) -> float:
    """Where an axis of shares ends that starts at 0 and holds all values.

    >>> axis_end([0.05, 0.3]), axis_end([1.2])
    (0.4, 1.0)
    """
    return next(end for end in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if end >= min(max(values), 1.0))


def tick_text(value: float) -> str:
    """A number at an axis, without zeros at its end.

    >>> tick_text(0.0), tick_text(0.5), tick_text(0.25)
    ('0', '0.5', '0.25')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def forest(asked: Asked, shown: Sequence[str]) -> Markup:
    """Each table's number with its interval; lines for chance and for the number of cells alone.

    Args:
        asked: One question.
        shown: The table before and the one that the verdict names.
    """
    left, right, top, step = 150.0, 58.0, 40.0, 26.0
    height = top + step * len(asked.answers) + 26
    chance = asked.answers[0].score.chance
    counts = asked.baselines.get(CELL_COUNT)
    ends = [answer.high if answer.high is not None else answer.value for answer in asked.answers]
    ends += [value for value in (chance, counts) if value is not None]
    limit = axis_end(ends)

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * min(max(value / limit, 0.0), 1.0)

    parts = []
    for tick in range(5):
        value = limit * tick / 4
        line = {"x1": x(value), "x2": x(value), "y1": top - 6, "y2": height - 24}
        parts += [
            element("line", **line, class_="grid"),
            element(
                "text",
                tick_text(value),
                x=x(value),
                y=height - 8,
                class_="tick middle",
            ),
        ]
    marks = [(chance, "chance", "chance"), (counts, "cells alone", "cells")]
    placed: list[float] = []
    for number, text, class_ in marks:
        if number is None:
            continue
        line = {"x1": x(number), "x2": x(number), "y1": top - 8, "y2": height - 24}
        parts.append(element("line", title(f"{text}: {number:.3f}"), **line, class_=class_))
        near = any(abs(x(number) - other) < 74 for other in placed)
        at = {"x": max(x(number), left + 20), "y": top - (24 if near else 11)}
        parts.append(element("text", text, **at, class_=f"tick middle {class_}"))
        placed.append(x(number))
    for place, answer in enumerate(asked.answers):
        y = top + step * place + 10
        kind = "base" if not place else ("best" if answer.table == shown[-1] else "other")
        name = {"x": left - 12, "y": y + 4, "class_": f"name end {kind}"}
        parts.append(element("text", cut(answer.table, 20), title(answer.table), **name))
        if answer.low is not None and answer.high is not None:
            box = {"x": x(answer.low), "width": max(1.0, x(answer.high) - x(answer.low))}
            bounds = title(f"95 % interval {answer.low:.3f} to {answer.high:.3f}")
            parts.append(
                element("rect", bounds, **box, y=y - 5, height=10, rx=5, class_=f"span {kind}")
            )
        hint = title(f"{answer.table}: {decimals(asked, answer.value)}")
        shape = "home" if kind == "base" else "new"
        parts.append(
            element("circle", hint, cx=x(answer.value), cy=y, r=5.5, class_=f"{shape} {kind}")
        )
        spot = {"x": WIDTH - 4, "y": y + 4, "class_": f"value end {kind}"}
        parts.append(element("text", decimals(asked, answer.value), **spot))
    told = "; ".join(f"{item.table} {decimals(asked, item.value)}" for item in asked.answers)
    label = f"{asked.question.name}: {told}."
    return drawing(parts, width=WIDTH, height=height, label=label, class_="gap forest")


def trade(biology: Asked, batch: Asked, best: str) -> Markup:
    """Every table by mixing (across, better to the right) and biology (up); crosses: intervals."""
    width, height, left, top, bottom, right = 760.0, 440.0, 66.0, 22.0, 62.0, 24.0
    high = [answer.high or answer.value for answer in biology.answers]
    counts = biology.baselines.get(CELL_COUNT)
    chance = biology.answers[0].score.chance
    ends = [*high, *(value for value in (counts, chance) if value is not None)]
    limit = axis_end(ends)

    def x(value: float) -> float:
        share = min(max(value, 0.0), 1.0)
        return left + (width - left - right) * (share if batch.question.higher else 1 - share)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - min(max(value / limit, 0.0), 1.0))

    parts = []
    for tick in range(5):
        across, up = tick / 4, limit * tick / 4
        ends_x = {"x1": x(across), "x2": x(across), "y1": top, "y2": height - bottom}
        ends_y = {"x1": left, "x2": width - right, "y1": y(up), "y2": y(up)}
        parts += [
            element("line", **ends_x, class_="grid"),
            element("line", **ends_y, class_="grid"),
            element("text", percent(across), x=x(across), y=height - 42, class_="tick middle"),
            element("text", tick_text(up), x=left - 8, y=y(up) + 4, class_="tick end"),
        ]
    mixed = batch.answers[0].score.chance
    if mixed is not None:
        line = {"x1": x(mixed), "x2": x(mixed), "y1": top, "y2": height - bottom}
        parts.append(element("line", title(f"by chance: {mixed:.3f}"), **line, class_="chance"))
        at = {"x": x(mixed) - 5, "y": top + 12, "class_": "tick end"}
        parts.append(element("text", "fully mixed", **at))
    for level, text, class_ in ((chance, "chance", "chance"), (counts, "cells alone", "cells")):
        if level is not None:
            line = {"x1": left, "x2": width - right, "y1": y(level), "y2": y(level)}
            parts.append(element("line", title(f"{text}: {level:.3f}"), **line, class_=class_))
            # Where the two lines nearly meet, the lower one has its name below it.
            partner = counts if class_ == "chance" else chance
            is_lower = partner is not None and level < partner and y(level) - y(partner) < 16
            down = 13 if is_lower else -5
            at = {"x": width - right - 6, "y": y(level) + down, "class_": f"tick end {class_}"}
            parts.append(element("text", text, **at))
    taken: list[tuple[float, float]] = []
    for place, (one, other) in enumerate(zip(biology.answers, batch.answers, strict=True)):
        kind = "base" if not place else ("best" if one.table == best else "other")
        cx, cy = x(other.value), y(one.value)
        for answer, is_up in ((one, True), (other, False)):
            if answer.low is None or answer.high is None:
                continue
            ends_of = (
                {"x1": cx, "x2": cx, "y1": y(answer.low), "y2": y(answer.high)}
                if is_up
                else {"x1": x(answer.low), "x2": x(answer.high), "y1": cy, "y2": cy}
            )
            parts.append(element("line", **ends_of, class_=f"cross {kind}"))
        text = (
            f"{one.table}: {biology.question.name.lower()} {decimals(biology, one.value)}, "
            f"{batch.question.name.lower()} {decimals(batch, other.value)}"
        )
        shape = "home" if kind == "base" else "new"
        parts.append(element("circle", title(text), cx=cx, cy=cy, r=6.5, class_=f"{shape} {kind}"))
        at_left = cx > width - 170
        up = cy - 10
        while any(abs(up - there) < 16 and abs(cx - across) < 150 for across, there in taken):
            up += 15
        taken.append((cx, up))
        spot = {"x": cx - 11 if at_left else cx + 11, "y": up}
        side = "end " if at_left else ""
        parts.append(element("text", cut(one.table, 24), **spot, class_=f"name {side}{kind}"))
    sense = "more" if batch.question.higher else "fewer"
    below = f"{batch.question.name} ({sense} is better →)"
    up_text = f"{biology.question.name} (more is better →)"
    middle = (height - bottom + top) / 2
    parts += [
        element(
            "text", below, x=(left + width - right) / 2, y=height - 14, class_="tick middle axis"
        ),
        element(
            "text",
            up_text,
            class_="tick middle axis",
            transform=f"translate(15 {middle:.0f}) rotate(-90)",
        ),
    ]
    told = "; ".join(
        f"{one.table} {decimals(biology, one.value)} and {decimals(batch, other.value)}"
        for one, other in zip(biology.answers, batch.answers, strict=True)
    )
    label = f"{biology.question.name} against {batch.question.name.lower()}: {told}."
    return drawing(parts, width=width, height=height, label=label, class_="gap trade")


def well_map(
    place: Float[np.ndarray, "n 2"],
    codes: Sequence[int],
    control: Sequence[bool],
    *,
    name: str,
    by: str,
) -> Markup:
    """A mark a well: disks, rings for negative controls; the page's script recolours and moves.

    Args:
        place: (n, 2) from -1 to 1.
        codes: Colours.
        control: Which are negative controls.
        name: The table.
        by: What the colours mean.
    """
    parts = [element("rect", x=0.5, y=0.5, width=SIDE - 1, height=SIDE - 1, rx=6, class_="frame")]
    radius = 3.2 if len(place) <= 2000 else 2.2
    for (across, up), code, is_control in zip(place.tolist(), codes, control, strict=True):
        cx, cy = SIDE * (0.5 + 0.485 * across), SIDE * (0.5 - 0.485 * up)
        class_ = f"{'seen' if is_control else 'unseen'} k{code}"
        parts.append(element("circle", cx=cx, cy=cy, r=radius, class_=class_))
    parts.append(element("circle", r=8, class_="halo", visibility="hidden"))
    label = f"Map of {len(place)} wells of {name}, coloured by {by}."
    return drawing(parts, width=SIDE, height=SIDE, label=label, class_="map")


def value_map(
    wells: pd.Series,
    number: Float[np.ndarray, " n"],
    size: tuple[int, int],
    limits: tuple[float, float],
    *,
    name: str,
) -> Markup:
    """Means of a number by position over all plates; the page's script draws single plates."""
    sums: dict[int, list[float]] = {}
    for well, value in zip(wells.tolist(), number.tolist(), strict=True):
        place = well_place(well)
        inside = place is not None and place[0] < size[0] and place[1] < size[1]
        if place is not None and inside and np.isfinite(value):
            sums.setdefault(place[0] * size[1] + place[1], []).append(value)

    def cell(number: int) -> tuple[str, str]:
        found = sums.get(number)
        if not found:
            return "qe", "no value"
        mean = sum(found) / len(found)
        return f"h{step_of(mean, limits)}", f"{mean:.4g}"

    return well_grid(size, cell, label=f"Plate map of {name}, mean over plates.", class_="values")


def step_of(value: float, limits: tuple[float, float]) -> int:
    """The colour step of a number, 0 to 10 (the page's script rounds in the same way).

    >>> step_of(0.0, (0.0, 1.0)), step_of(0.5, (0.0, 1.0)), step_of(9.0, (0.0, 1.0))
    (0, 5, 10)
    """
    low, high = limits
    share = (value - low) / (high - low) if high > low else 0.5
    return int(min(max(share, 0.0), 1.0) * NUM_STEPS + 0.5)


def limits_of(number: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The ends of a colour scale: the 1st and 99th percentile over all wells of all plates."""
    finite = number[np.isfinite(number)]
    low, high = np.percentile(finite, [1, 99])
    return float(low), float(high)
