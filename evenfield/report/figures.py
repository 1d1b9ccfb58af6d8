"""The gap plot and the drift of the controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import pandas as pd
from markupsafe import Markup

from evenfield.report.svg import drawing, element, title
from evenfield.report.tables import BASELINE, Row
from evenfield.report.words import (
    cut,
    is_share,
    natural,
    number,
    percent,
    protocol_name,
    short_name,
)

WIDTH = 1000.0
_STEPS = tuple(base * 10.0**power for power in range(-2, 7) for base in (1, 2, 5))


def gap_plot(
    unseen: Sequence[Row], at_home: Sequence[Row], *, best: Row, chance: float | None
) -> Markup:
    """One line a choice: in-domain (ring), unseen (disk), its interval and each domain (ticks).

    Args:
        unseen: Rows of one protocol, metric and level.
        at_home: In-domain rows of the same metric and level.
        best: The row that the verdict names.
        chance: Where the best constant answer lies, if known.
    """
    home = {row.choice: row for row in at_home}
    order = sorted(unseen, key=lambda row: (row.choice != BASELINE, -row.mean, row.choice))
    left, right, top, step = 250.0, 172.0, 34.0, 30.0
    shown = [*unseen, *(home[row.choice] for row in order if row.choice in home)]
    share = is_share(best.metric)
    ends = [row.mean for row in shown] + [row.high or 0.0 for row in shown]
    limit = 1.0 if share else max(0.1, ceil(max(ends) * 10) / 10)
    height = top + step * len(order) + 34

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * min(max(value / limit, 0.0), 1.0)

    parts = []
    for tick in range(6):
        at, value = x(limit * tick / 5), limit * tick / 5
        text = percent(value) if share else f"{value:.2g}"
        parts += [
            element("line", x1=at, x2=at, y1=top - 8, y2=height - 30, class_="grid"),
            element("text", text, x=at, y=height - 12, class_="tick middle"),
        ]
    if chance is not None:
        at = x(chance)
        parts += [
            element("line", x1=at, x2=at, y1=top - 8, y2=height - 30, class_="chance"),
            element("text", "chance", x=at, y=top - 14, class_="tick middle"),
        ]
    for text, at in (("unseen", WIDTH - 92), ("gap closed", WIDTH - 4)):
        parts.append(element("text", text, x=at, y=top - 14, class_="tick end"))
    for place, row in enumerate(order):
        y = top + step * place + 14
        parts += _gap_line(row, home.get(row.choice), x, y, left, row.choice == best.choice)
    label = "; ".join(
        f"{short_name(*row.choice)}: {protocol_name(row.protocol)} {number(row.mean, row.metric)}"
        + (f", in-domain {number(home[row.choice].mean, row.metric)}" if row.choice in home else "")
        for row in order
    )
    return drawing(parts, width=WIDTH, height=height, label=f"Gap plot. {label}.", class_="gap")


def _gap_line(
    row: Row,
    home: Row | None,
    x: Callable[[float], float],
    y: float,
    left: float,
    is_best: bool,
) -> list[Markup]:
    kind = "best" if is_best else ("base" if row.choice == BASELINE else "other")
    value = percent(row.mean) if is_share(row.metric) else number(row.mean, row.metric)
    parts = [
        element("text", short_name(*row.choice), x=left - 16, y=y + 4, class_=f"name end {kind}")
    ]
    if home is not None:
        ends = {"x1": x(row.mean), "x2": x(home.mean)}
        parts.append(element("line", **ends, y1=y, y2=y, class_="loss"))
    if row.low is not None and row.high is not None:
        size = {"x": x(row.low), "width": max(1.0, x(row.high) - x(row.low))}
        text = f"95 % interval {number(row.low, row.metric)} to {number(row.high, row.metric)}"
        parts.append(
            element("rect", title(text), **size, y=y - 5, height=10, rx=5, class_=f"span {kind}")
        )
    for unit, mean in row.by_unit:
        text = title(f"{unit}: {number(mean, row.metric)}")
        line = {"x1": x(mean), "x2": x(mean), "y1": y - 8, "y2": y + 8}
        parts.append(element("line", text, **line, class_=f"unit {kind}"))
    if home is not None:
        text = title(f"in-domain: {number(home.mean, home.metric)}")
        parts.append(element("circle", text, cx=x(home.mean), cy=y, r=5.5, class_=f"home {kind}"))
    text = title(f"{protocol_name(row.protocol)}: {number(row.mean, row.metric)}")
    parts.append(element("circle", text, cx=x(row.mean), cy=y, r=6, class_=f"new {kind}"))
    closed = "" if row.gap_closed is None else percent(row.gap_closed)
    parts += [
        element("text", value, x=WIDTH - 92, y=y + 4, class_=f"value end {kind}"),
        element("text", closed, x=WIDTH - 4, y=y + 4, class_=f"value end {kind}"),
    ]
    return parts


def drift_plot(table: pd.DataFrame) -> Markup:
    """How far each plate's controls lie from training: columns are batches, marks are plates.

    Args:
        table: plate, batch, split, shift; one row for each plate and split.
    """
    batches = sorted(set(table["batch"].astype(str)), key=natural)
    left, top, bottom, height = 54.0, 16.0, 44.0, 250.0
    most = max(float(table["shift"].max()) * 1.08, 0.1)
    train = table.loc[table["split"] == "train", "shift"]
    width = WIDTH - left - 10
    column = width / len(batches)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - value / most)

    parts = []
    if len(train):
        band = float(train.max())
        shape = {"x": left, "width": width, "y": y(band), "height": y(0) - y(band)}
        parts.append(element("rect", title("range of training plates"), **shape, class_="band"))
    nice = next(size for size in _STEPS if most / size <= 5)
    for tick in range(int(most / nice) + 1):
        value = nice * tick
        parts += [
            element("line", x1=left, x2=left + width, y1=y(value), y2=y(value), class_="grid"),
            element("text", f"{value:g}", x=left - 8, y=y(value) + 4, class_="tick end"),
        ]
    for place, batch in enumerate(batches):
        of_batch = sorted(
            table[table["batch"] == batch].to_dict("records"),
            key=lambda row: (row["split"], natural(str(row["plate"]))),
        )
        middle = left + column * (place + 0.5)
        if place:
            edge = left + column * place
            parts.append(
                element("line", x1=edge, x2=edge, y1=top, y2=height - bottom, class_="grid")
            )
        parts.append(element("text", cut(batch), x=middle, y=height - 22, class_="tick middle"))
        room = column * 0.8 / max(1, len(of_batch))
        for index, row in enumerate(of_batch):
            where = middle + room * (index - (len(of_batch) - 1) / 2)
            text = f"plate {row['plate']}, batch {batch} ({row['split']}): {row['shift']:.2f}"
            mark = {"cx": where, "cy": y(float(row["shift"])), "r": 4.5}
            parts.append(element("circle", title(text), **mark, class_=f"drift {row['split']}"))
    parts.append(element("text", "batch", x=left + width / 2, y=height - 4, class_="tick middle"))
    label = f"Drift of the controls of {table['plate'].nunique()} plates in {len(batches)} batches."
    return drawing(parts, width=WIDTH, height=height, label=label, class_="drifts")
