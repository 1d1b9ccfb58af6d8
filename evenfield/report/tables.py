"""From records to rows: means over domains of means over seeds, with intervals over domains."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from typing import Any

import numpy as np

from evenfield.metrics.base import METRICS
from evenfield.metrics.bootstrap import interval, paired_interval, unit_means
from evenfield.metrics.gap import gap_closed
from evenfield.records import Record, marks_of
from evenfield.report.words import number

BASELINE = ("erm", "source")
IN_DOMAIN = "in-domain"
_FINE = ("context", "group")
_ORDER = {"in-domain": 0, "new-batch": 1, "new-source": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One choice under one protocol, judged by one metric.

    Attributes:
        protocol: in-domain, new-batch, new-source, ...
        method: The training method.
        adapter: The adapter.
        metric: The metric's name.
        level: `image` or `well`.
        mean: Mean over held-out domains of the mean over seeds.
        low: Lower bound of the 95 % interval over domains; None with fewer than 3 domains.
        high: Upper bound.
        num_seeds: The least number of seeds behind a domain.
        num_units: How many domains.
        num: Scored items, summed over domains.
        alpha: Dirichlet concentration of the label shift; None = as the plates are.
        num_images: Perturbed images in a context; None = all.
        num_controls: Controls in a context; None = all.
        gap_closed: Share of the loss of ERM without adaptation that is won back, if there is one.
        gain: Mean difference to ERM without adaptation on the same domains.
        gain_low: Lower bound of the paired 95 % interval of the gain.
        gain_high: Upper bound.
        screen: Fingerprint of the screen.
        units: `domain`, or `fold` where no values by domain were recorded.
        by_unit: Each domain's mean over seeds.
        seed_sd: Sample standard deviation (n - 1) over seeds of the mean over domains, as WILDS
            reports it; None with one seed.
    """

    protocol: str
    method: str
    adapter: str
    metric: str
    level: str
    mean: float
    low: float | None
    high: float | None
    num_seeds: int
    num_units: int
    num: int
    alpha: float | None = None
    num_images: int | None = None
    num_controls: int | None = None
    gap_closed: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    screen: str = ""
    units: str = "domain"
    by_unit: tuple[tuple[str, float], ...] = ()
    seed_sd: float | None = None

    @property
    def choice(self) -> tuple[str, str]:
        """Method and adapter."""
        return self.method, self.adapter

    @property
    def is_natural(self) -> bool:
        """Whether plates are used as they are: no label shift, all images, all controls."""
        return self.alpha is None and self.num_images is None and self.num_controls is None


_Key = tuple[Any, ...]


def summarise(records: Iterable[Record]) -> list[Row]:
    """Aggregate the values of a results folder.

    A value that was written twice (a repeated run) counts once, as last written. Values by domain
    are used where there are any; else the values over all scored items, one unit a fold. Values by
    plate (unit role `context`) are for maps and are not aggregated, nor are those by group.

    Args:
        records: Any records; artifacts are passed over.

    Returns:
        Rows sorted by protocol, metric, level, regime and choice, with gains over ERM without
        adaptation and the share of the gap closed where these are defined.
    """
    groups: dict[_Key, dict[str, dict[_Key, Record]]] = {}
    for record in records:
        if record.kind != "value" or record.value is None or record.unit_role in _FINE:
            continue
        roles = groups.setdefault(_group(record), {})
        single = (record.unit, record.seed, record.fold)
        roles.setdefault(record.unit_role, {})[single] = record
    rows = [_row(key, roles) for key, roles in groups.items()]
    index = {_identity(row): row for row in rows}
    return sorted((_compared(row, index) for row in rows), key=_sort_key)


def _group(record: Record) -> _Key:
    return (
        record.screen,
        record.protocol,
        record.metric,
        record.level,
        record.alpha,
        record.num_images,
        record.num_controls,
        record.method,
        record.adapter,
    )


def _identity(row: Row) -> _Key:
    return (
        row.screen,
        row.protocol,
        row.metric,
        row.level,
        row.alpha,
        row.num_images,
        row.num_controls,
        row.method,
        row.adapter,
    )


def _sort_key(row: Row) -> _Key:
    regime = (row.alpha, row.num_images, row.num_controls)
    return (
        row.screen,
        *_rank(row.protocol),
        row.metric,
        row.level,
        tuple((-1.0 if part is None else part) for part in regime),
        row.choice != BASELINE,
        row.method,
        row.adapter,
    )


def _rank(protocol: str) -> _Key:
    """Marked protocols (of another track, or selected by an oracle) stand last."""
    name, marks = marks_of(protocol)
    return marks != "", _ORDER.get(name, 9), protocol


def home_of(protocol: str) -> str:
    """The in-domain protocol of the same track."""
    return IN_DOMAIN + marks_of(protocol)[1]


def _row(key: _Key, roles: dict[str, dict[_Key, Record]]) -> Row:
    screen, protocol, metric, level, alpha, num_images, num_controls, method, adapter = key
    units = "domain" if "domain" in roles else "fold"
    found = list((roles["domain"] if "domain" in roles else next(iter(roles.values()))).values())
    names = np.array([item.unit if units == "domain" else item.fold for item in found])
    values = np.array([item.value for item in found], dtype=np.float64)
    seeds = np.array([item.seed for item in found])
    means = interval(values, names, seeds)
    unit_names, unit_values, _ = unit_means(values, names, seeds)
    return Row(
        protocol=protocol,
        method=method,
        adapter=adapter,
        metric=metric,
        level=level,
        mean=means.mean,
        low=means.low,
        high=means.high,
        num_seeds=means.num_seeds,
        num_units=means.num_units,
        num=sum(
            max(item.num for item, name in zip(found, names, strict=True) if name == unit)
            for unit in unit_names
        ),
        alpha=alpha,
        num_images=num_images,
        num_controls=num_controls,
        screen=screen,
        units=units,
        by_unit=tuple(zip(unit_names, unit_values.tolist(), strict=True)),
        seed_sd=_seed_sd(values, names, seeds),
    )


def _seed_sd(values: np.ndarray, names: np.ndarray, seeds: np.ndarray) -> float | None:
    of_seed = [
        unit_means(values[seeds == seed], names[seeds == seed])[1].mean()
        for seed in np.unique(seeds)
    ]
    return float(np.std(of_seed, ddof=1)) if len(of_seed) > 1 else None


def _compared(row: Row, index: dict[_Key, Row]) -> Row:
    """The row with its gain over ERM without adaptation and its share of the gap closed."""
    home = home_of(row.protocol)
    if row.protocol == home:
        return row
    baseline = _baseline(row, index)
    if baseline is None or row.choice == BASELINE:
        return row
    mine, theirs = dict(row.by_unit), dict(baseline.by_unit)
    shared = sorted(mine.keys() & theirs.keys())
    if shared:
        gain = paired_interval(
            np.array([mine[unit] for unit in shared]),
            np.array([theirs[unit] for unit in shared]),
            np.array(shared),
        )
        row = replace(row, gain=gain.mean, gain_low=gain.low, gain_high=gain.high)
    at_home = index.get((row.screen, home, row.metric, row.level, None, None, None, *BASELINE))
    if at_home is None or row.metric not in METRICS:
        return row
    gap = gap_closed(at_home.mean, baseline.mean, row.mean, direction=METRICS[row.metric].direction)
    return replace(row, gap_closed=gap.closed)


def _baseline(row: Row, index: dict[_Key, Row]) -> Row | None:
    """ERM without adaptation in the same regime; it needs no context, so counts may be absent."""
    head = (row.screen, row.protocol, row.metric, row.level)
    for regime in (
        (row.alpha, row.num_images, row.num_controls),
        (row.alpha, None, None),
        (None, None, None),
    ):
        if (*head, *regime, *BASELINE) in index:
            return index[(*head, *regime, *BASELINE)]
    return None


def as_json(rows: Sequence[Row]) -> str:
    """The rows as a JSON array, one row a line, keys sorted."""
    lines = (json.dumps(asdict(row), sort_keys=True, allow_nan=False) for row in rows)
    return "[\n" + ",\n".join(lines) + "\n]" if rows else "[]"


def as_text(rows: Sequence[Row], *, width: int = 120) -> str:
    """The rows as a table for a terminal, without colours."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    regimes = any(not row.is_natural for row in rows)
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="mean over held-out domains of the mean over seeds; 95 % interval over domains, or "
        "± the sample standard deviation over seeds; shares in percent",
        caption_justify="left",
    )
    heads = ["protocol", "method", "adapter", "metric", "level"]
    heads += ["alpha", "images", "controls"] if regimes else []
    for head in heads:
        table.add_column(head, overflow="fold")
    for head in ("mean", "95 % interval", "gap closed", "domains", "seeds", "scored"):
        table.add_column(head, justify="right")
    for row in rows:
        cells = [row.protocol, row.method, row.adapter, row.metric, row.level]
        if regimes:
            regime = (row.alpha, row.num_images, row.num_controls)
            cells += ["all" if part is None else f"{part:g}" for part in regime]
        bounds = "–" if row.seed_sd is None else f"± {number(row.seed_sd, row.metric)}"
        if row.low is not None and row.high is not None:
            bounds = f"{number(row.low, row.metric)} to {number(row.high, row.metric)}"
        share = "–" if row.gap_closed is None else f"{100 * row.gap_closed:.0f} %"
        counts = (row.num_units, row.num_seeds, row.num)
        cells += [number(row.mean, row.metric), bounds, share, *map(str, counts)]
        # As Text: a name such as `cs-arm-bn[controls]` must not be read as markup.
        table.add_row(*map(Text, cells))
    text = StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    return text.getvalue().rstrip() + "\n"
