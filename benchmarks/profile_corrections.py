"""What the benchmarks of real profile tables share: corrections by name, records, readings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

import evenfield
from evenfield.config import from_dict
from evenfield.correct import CORRECTORS, Step
from evenfield.errors import EvenfieldWarning
from evenfield.metrics.base import Score
from evenfield.metrics.baselines import cell_count_profiles, random_profiles
from evenfield.metrics.bootstrap import Interval, score_interval
from evenfield.records import FILE, Record, append, digest, read
from evenfield.types import Profiles

RECORDS = Path(__file__).parent / "records"
Steps = tuple[Step, ...]

Z = Step(corrector="standardise", options={"domain": None, "reference": "all"})
"""One mean and one standard deviation for the whole table, treated wells included."""


def by_plate(scale: str, corrector: str = "standardise") -> Step:
    """Each plate by its own negative controls."""
    return Step(corrector=corrector, options={"scale": scale})


def rule(corrector: str, domain: str | None = None, **options: Any) -> Step:
    """Another corrector, with the column of its batch where it has one."""
    return Step(corrector=corrector, options=({"domain": domain} if domain else {}) | options)


class Corrected:
    """A table under many corrections that begin alike: each beginning is fitted once.

    Args:
        table: All wells.
        fit: (n,) the wells that corrections may be fitted on; the others come later.
    """

    def __init__(self, table: Profiles, fit: np.ndarray | None = None) -> None:
        self._fit = np.ones(len(table), dtype=bool) if fit is None else fit
        self._made: dict[str, tuple[Profiles, str]] = {"": (table, "-")}

    def __call__(self, steps: Steps) -> Profiles:
        """The whole table, every step fitted on the wells that may be seen."""
        return self._at(steps)[0]

    def looked_at(self, steps: Steps) -> str:
        """What the correction looked at of wells that it was not fitted on."""
        return self._at(steps)[1]

    def _at(self, steps: Steps) -> tuple[Profiles, str]:
        key = "" if not steps else digest([asdict(step) for step in steps])
        if key not in self._made:
            before, seen = self._at(steps[:-1])
            cls = CORRECTORS[steps[-1].corrector]
            step = cls(from_dict(cls.Config, steps[-1].options, where=f"{cls.name}."))
            with warnings.catch_warnings():  # few controls: said once, in the docs
                warnings.simplefilter("ignore", EvenfieldWarning)
                after = step.fit(before[self._fit]).transform(before)
            order = ["-", "same", "controls", "rows"]
            self._made[key] = after, max(seen, step.unseen, key=order.index)
        return self._made[key]


def baselines(table: Profiles, crowding: str) -> dict[str, Profiles]:
    """Noise, and one feature that follows the number of cells: what every score stands beside.

    The tables hold no cell counts; `crowding` is the feature that comes nearest.
    """
    # Ranks, because a count of cells is a whole number and equal ones are told apart at random.
    rank = rankdata(table.features[:, table.names.index(crowding)], method="dense")
    counted = replace(table, metadata=table.metadata.assign(Crowding=rank))
    ranked = cell_count_profiles(counted, count="Crowding")
    return {"crowding alone": replace(ranked, metadata=table.metadata),
            "random features": random_profiles(table)}  # fmt: skip


def among(score: Score, queries: np.ndarray) -> Score:
    """The same score of some of its items only: mean, denominator, ceiling and chance are theirs.

    Args:
        score: Of NSC or NSCB.
        queries: (n,) which items ask; all of them were neighbours.
    """
    items = score.items[queries].reset_index(drop=True)
    can = items["reachable"].to_numpy(bool)
    right = items["score"].to_numpy()
    label = items["Metadata_Label"]
    return replace(
        score,
        value=float(right.mean()),
        num=len(items),
        chance=float(label.value_counts().max() / len(items)),
        ceiling=float(can.mean()),
        also={"reachable": (float(right[can].mean()), int(can.sum()))},
        items=items,
    )


def record(
    score: Score, steps: Steps | None, name: str, *, by: Sequence[str], **others: Any
) -> Record:
    """A record of a score with everything that is needed to read it.

    Args:
        score: Of a profile metric.
        steps: The correction; None for a baseline.
        name: Its name in the tables.
        by: Columns whose names are resampled for intervals.
        others: Fields of `Record`, and `extra`.
    """
    spans = {column: span(score_interval(score, column)) for column in by}
    extra = {
        "correction": name,
        "steps": None if steps is None else [asdict(step) for step in steps],
        "chance": score.chance,
        "ceiling": score.ceiling,
        "direction": score.direction,
        "left_out": dict(score.left_out),
        "also": {key: list(value) for key, value in score.also.items()},
        "intervals": spans,
        **others.pop("extra", {}),
    }
    return value(score.metric, score.value, score.num, level=score.unit, extra=extra, **others)


def value(metric: str, number: float | None, num: int, **others: Any) -> Record:
    """A record of one number, by the version that runs."""
    told = Record(kind="value", metric=metric, value=number, num=num,
                  versions={"evenfield": evenfield.__version__, "numpy": np.__version__},
                  **others)  # fmt: skip
    key = [told.metric, told.protocol, told.fold, told.unit, told.extra.get("correction", "")]
    return replace(told, cell=digest(key))


def span(found: Interval) -> list[float | int | None]:
    """Low, high, and how many units were resampled."""
    ends = [None if end is None else round(end, 6) for end in (found.low, found.high)]
    return [*ends, found.num_units]


def keep(folder: Path, records: Sequence[Record], protocols: set[str]) -> None:
    """Write records; older ones of the same protocols go, those of others stay."""
    old = read(folder) if (folder / FILE).exists() else []
    stay = [item for item in old if item.protocol not in protocols]
    (folder / FILE).unlink(missing_ok=True)
    append(folder, [*stay, *records])


def correction_of(item: Record) -> str:
    """The name of a record's correction."""
    return str(item.extra.get("correction", ""))


def wanted(items: Sequence[Record], **fields: str) -> Iterator[Record]:
    """The records whose fields have these values."""
    for item in items:
        if all(getattr(item, key) == text for key, text in fields.items()):
            yield item


def percent(number: float | None, sign: str = "") -> str:
    """100 times a share, one digit."""
    return "–" if number is None else f"{100 * number:{sign}.1f}"


def interval_text(found: Mapping[str, Sequence[Any]], by: str, sign: str = "") -> str:
    """An interval of a record as percents."""
    low, high, _ = found[by]
    return "–" if low is None else f"{percent(low, sign)} to {percent(high, sign)}"


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table."""
    print("| " + " | ".join(head) + " |")
    print("| --- " * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def housed(frame: pd.DataFrame, **columns: pd.Series) -> Profiles:
    """A wide table with some metadata columns added, as float64 profiles."""
    meta = [name for name in frame if str(name).startswith("Metadata_")]
    names = [name for name in frame if name not in meta]
    return Profiles(
        features=frame[names].to_numpy(np.float64),
        names=tuple(map(str, names)),
        metadata=frame[meta].assign(**columns).reset_index(drop=True),
    )
