"""Names and numbers as a reader says them."""

from __future__ import annotations

import re

from evenfield.records import ORACLE, TRANSDUCTIVE, marks_of

_ADAPTED = {
    "source": "without adaptation",
    "controls": "with the plate's own controls",
    "batch": "with the plate's own images",
    "domain": "with all images of the plate, pooled",
    "union": "with the plate's own images and controls",
    "prior": "with statistics blended from training and plate",
    "context": "with the context rule (training, controls and images weighed layer by layer)",
    "lame": "with predictions smoothed over the plate (LAME)",
    "tent": "with entropy minimised on the plate (TENT)",
    "t3a": "with class prototypes from the plate (T3A)",
}
_WHERE = {
    "in-domain": ("in-domain", "on held-out wells of its own training batches"),
    "new-batch": ("new batch", "on batches it has never seen"),
    "new-source": ("new source", "on laboratories it has never seen"),
    "new-plate": ("new plate", "on plates it has never seen"),
}
_METRIC = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "nll": "negative log-likelihood",
    "ece": "calibration error",
    "acc_avg": "average accuracy (WILDS)",
    "acc_wg": "worst-group accuracy (WILDS)",
}
_MARKED = {
    ORACLE: ", the model selected on these very images",
    TRANSDUCTIVE: ", their unlabelled images read",
}
UNITS = {"new-batch": "batch", "new-source": "laboratory", "new-plate": "plate"}
"""What one held-out domain is called, by protocol."""
PLURAL = {"batch": "batches", "laboratory": "laboratories", "domain": "domains", "plate": "plates"}


def method_name(method: str) -> str:
    """The name of a method in a sentence.

    >>> method_name("cs-arm-bn[controls]")
    'CS-ARM-BN (trained on controls)'
    """
    base, _, switch = method.partition("[")
    text = base.upper() if len(base) <= 4 or "-" in base else base
    return f"{text} (trained on {switch.rstrip(']')})" if switch else text


def short_name(method: str, adapter: str) -> str:
    """A choice as a label in a plot: `CS-ARM-BN · union`."""
    base, _, switch = method.partition("[")
    name = method_name(base) + (f" [{switch}" if switch else "")
    return f"{name} · {adapter}" if adapter else name


def adapted(adapter: str) -> str:
    """What an adapter does, after a method's name."""
    return _ADAPTED.get(adapter, f"adapted by {adapter}" if adapter else "")


def where(protocol: str) -> str:
    """Where a protocol tests, in a sentence."""
    name, marks = marks_of(protocol)
    place = _WHERE.get(name, ("", f"under the protocol {name}"))[1]
    return place + "".join(text for mark, text in _MARKED.items() if mark in marks)


def protocol_name(protocol: str) -> str:
    """A protocol as a column's name.

    >>> protocol_name("new-batch (transductive)")
    'new batch (transductive)'
    """
    name, marks = marks_of(protocol)
    return _WHERE.get(name, (name, ""))[0] + marks


def metric_name(metric: str) -> str:
    """A metric as a reader says it."""
    return _METRIC.get(metric, metric.replace("_", " "))


def plural(num: int, unit: str) -> str:
    """A count and its unit.

    >>> plural(1, "batch"), plural(4, "batch"), plural(3, "seed")
    ('1 batch', '4 batches', '3 seeds')
    """
    return f"{num} {unit if num == 1 else PLURAL.get(unit, unit + 's')}"


def percent(value: float) -> str:
    """A share as whole percent; one decimal where rounding would claim 0 or 100.

    >>> percent(0.94), percent(0.9961), percent(1.0)
    ('94 %', '99.6 %', '100 %')
    """
    whole = f"{100 * value:.0f}"
    if whole in {"0", "-0", "100"} and value not in {0.0, 1.0}:
        whole = f"{100 * value:.1f}"
        whole = "0" if whole == "-0.0" else whole
    return f"{whole} %"


def percents(low: float, high: float) -> str:
    """A range of shares.

    >>> percents(0.91, 0.96)
    '91 to 96 %'
    """
    return f"{percent(low)[:-2]} to {percent(high)}"


def is_share(metric: str) -> bool:
    """Whether a metric is read in percent."""
    return metric != "nll"


def number(value: float | None, metric: str) -> str:
    """A value in a table: percent with one decimal, or three digits for nats."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if is_share(metric) else f"{value:.3f}"


def cut(text: str, most: int = 16) -> str:
    """A name that fits into a plot.

    >>> cut("week 7"), cut("a very long name", most=8)
    ('week 7', 'a very …')
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key: `B2` before `B10`."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.findall(r"[0-9]+|[^0-9]+", text)
    ]
