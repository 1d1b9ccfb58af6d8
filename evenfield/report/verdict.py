"""The answer in words: a pure function of the rows, with a plain sentence for every outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evenfield.metrics.base import METRICS
from evenfield.records import ORACLE, TRANSDUCTIVE, marks_of
from evenfield.report.tables import BASELINE, Row, home_of
from evenfield.report.words import (
    UNITS,
    adapted,
    is_share,
    method_name,
    metric_name,
    number,
    percent,
    percents,
    plural,
    where,
)

_PREFERRED_PROTOCOLS = ("new-batch", "new-source")
_PREFERRED_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of a results folder.

    Attributes:
        sentence: One or two plain sentences.
        notes: Caveats that belong to the sentence.
        protocol: Which unseen units it speaks of ("" if none was measured).
        metric: The metric it speaks of.
        level: Image or well.
        best: The choice with the best mean on unseen units.
        baseline: ERM without adaptation on the same units.
        at_home: ERM without adaptation in-domain.
        num_choices: Among how many choices `best` was picked.
    """

    sentence: str
    notes: tuple[str, ...] = ()
    protocol: str = ""
    metric: str = ""
    level: str = "image"
    best: Row | None = None
    baseline: Row | None = None
    at_home: Row | None = None
    num_choices: int = 0


def verdict(rows: Sequence[Row]) -> Verdict:
    """What the rows say about data that the model has never seen.

    It reads plates as they are (no label shift, full context), accuracy if measured, images before
    wells, new batches before new sources, marked protocols last. The best choice is picked by its
    mean on these same results; the notes say so.
    """
    natural = [row for row in rows if row.is_natural]
    picked = _pick(natural)
    if picked is None:
        return Verdict(
            sentence="These results hold no measurement on unseen batches, so they say nothing "
            "about new plates."
        )
    protocol, metric, level = picked
    mine = [row for row in natural if (row.metric, row.level) == (metric, level)]
    unseen = [row for row in mine if row.protocol == protocol]
    higher = metric not in METRICS or METRICS[metric].direction == "higher"
    # Ties go to the simpler story: the baseline first, then the order of the rows.
    best = max(unseen, key=lambda row: row.mean if higher else -row.mean)
    baseline = next((row for row in unseen if row.choice == BASELINE), None)
    at_home = next(
        (row for row in mine if (row.protocol, row.choice) == (home_of(protocol), BASELINE)), None
    )
    sentence = _sentence(best, baseline, at_home)
    return Verdict(
        sentence=sentence,
        notes=tuple(_notes(best, baseline, at_home, len(unseen))),
        protocol=protocol,
        metric=metric,
        level=level,
        best=best,
        baseline=baseline,
        at_home=at_home,
        num_choices=len(unseen),
    )


def _pick(rows: Sequence[Row]) -> tuple[str, str, str] | None:
    """Protocol, metric and level that the verdict speaks of."""
    unseen = [row for row in rows if row.protocol != home_of(row.protocol)]
    found = {(row.protocol, row.metric, row.level) for row in unseen}
    if not found:
        return None

    def rank(item: tuple[str, str, str]) -> tuple[bool, int, int, bool, tuple[str, str, str]]:
        protocol, metric, level = item
        name, marks = marks_of(protocol)
        first = (*_PREFERRED_PROTOCOLS, name).index(name)
        second = (*_PREFERRED_METRICS, metric).index(metric)
        return marks != "", first, second, level != "image", item

    return min(found, key=rank)


def _name(row: Row) -> str:
    return f"{method_name(row.method)} {adapted(row.adapter)}".strip()


def _value(row: Row) -> str:
    return percent(row.mean) if is_share(row.metric) else number(row.mean, row.metric)


def _unit(row: Row) -> str:
    return UNITS.get(marks_of(row.protocol)[0], "domain") if row.units == "domain" else "fold"


def _uncertainty(row: Row) -> str:
    units = plural(row.num_units, f"unseen {_unit(row)}") if row.num_units == 1 else ""
    units = units or f"{row.num_units} unseen {plural(row.num_units, _unit(row)).split(' ', 1)[1]}"
    if row.low is None or row.high is None:
        return f"{units}, too few for an interval"
    bounds = (
        percents(row.low, row.high)
        if is_share(row.metric)
        else f"{number(row.low, row.metric)} to {number(row.high, row.metric)}"
    )
    return f"95 % interval {bounds} over {units}"


def _claim(row: Row) -> str:
    """`X is right for 94 % of images`, or its like for other metrics."""
    items = f"{row.level}s"
    if row.metric == "accuracy":
        return f"is right for {_value(row)} of {items}"
    return f"reaches a {metric_name(row.metric)} of {_value(row)} ({items})"


def _sentence(best: Row, baseline: Row | None, at_home: Row | None) -> str:
    place = where(best.protocol)
    place = place[0].upper() + place[1:]
    if best.choice == BASELINE:
        return (
            f"{place}, {_name(best)} {_claim(best)} ({_uncertainty(best)}){_alone(best, at_home)}"
        )
    opening = f"{place}, {_name(best)} {_claim(best)} ({_uncertainty(best)})"
    if baseline is None:
        return (
            f"{opening}. ERM without adaptation was not measured, so nothing says what it gained."
        )
    if at_home is None:
        return (
            f"{opening}; ERM without adaptation reaches {_value(baseline)} there. ERM was not "
            "measured in-domain, so how much of its loss is won back is unknown."
        )
    if best.gap_closed is None:
        return (
            f"{opening}; ERM without adaptation loses nothing there ({_value(at_home)} in-domain, "
            f"{_value(baseline)} on unseen data), so there is no gap to win back."
        )
    verb = "falls" if METRICS[best.metric].direction == "higher" else "rises"
    loss = f"{opening}; ERM without adaptation {verb} from {_value(at_home)} to {_value(baseline)}."
    hero = "Adaptation" if best.method == baseline.method else method_name(best.method)
    share = "all" if best.gap_closed >= 1 else percent(best.gap_closed)
    return f"{loss} {hero} wins back {share} of that loss."


def _alone(best: Row, at_home: Row | None) -> str:
    """The end of the sentence where ERM without adaptation is the best, or all there is."""
    if at_home is None:
        return ", and nothing else that was measured does better."
    if METRICS[best.metric].direction == "higher":
        loses = at_home.mean > best.mean
    else:
        loses = at_home.mean < best.mean
    if not loses:
        return f"; in-domain it reaches {_value(at_home)}, so it loses nothing on unseen data."
    return f", against {_value(at_home)} in-domain. Nothing that was measured wins that loss back."


def _notes(best: Row, baseline: Row | None, at_home: Row | None, num_choices: int) -> list[str]:
    notes = []
    if ORACLE in best.protocol:
        notes.append("The model was selected on the very images it is judged on: no honest number.")
    if TRANSDUCTIVE in best.protocol:
        notes.append(
            "Unlabelled images of the new units were read: under the benchmark's rules another "
            "track, not to be compared with results that do without."
        )
    if num_choices > 2 and best.choice != BASELINE:
        notes.append(
            f"The named choice is the best of {num_choices} by its mean on these same data, so its "
            "number is a little optimistic."
        )
    if best.gain is not None and best.gain_low is not None and best.gain_high is not None:
        scale, unit = (100, "points") if is_share(best.metric) else (1, "nats")
        digits = 1 if is_share(best.metric) else 3
        low, high = scale * best.gain_low, scale * best.gain_high
        text = (
            f"Against ERM without adaptation, on the same data: {scale * best.gain:+.{digits}f} "
            f"{unit} (paired 95 % interval {low:+.{digits}f} to {high:+.{digits}f})"
        )
        notes.append(
            f"{text}. The interval holds zero: this gain is not certain."
            if low <= 0 <= high
            else f"{text}."
        )
    if best.low is None:
        notes.append(
            f"With {plural(best.num_units, _unit(best))} held out there is no honest interval; "
            "hold out three or more."
        )
    if best.num_seeds < 3:
        notes.append(
            f"Only {plural(best.num_seeds, 'training seed')}; with three or more, chance in the "
            "training shows."
        )
    if best.units == "fold":
        notes.append("No values by domain were recorded; intervals are taken over folds.")
    if baseline is not None and at_home is not None and baseline.units != at_home.units:
        notes.append("In-domain and unseen values were averaged over different kinds of units.")
    return notes
