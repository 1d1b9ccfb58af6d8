"""A results folder as a Markdown table, as in docs/results.md.

python benchmarks/tables.py benchmarks/records/NAME METRIC [PROTOCOL ...]
"""

import sys
from pathlib import Path

from evenfield.records import read
from evenfield.report.tables import summarise


def span(low: float | None, high: float | None, sign: str = "") -> str:
    return (
        "–" if low is None or high is None else f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"
    )


def regime(row) -> str:
    if row.is_natural:
        return "whole plates"
    mix = "" if row.alpha is None else f", alpha {row.alpha:g}"
    controls = "all" if row.num_controls is None else row.num_controls
    return f"{row.num_images} image(s), {controls} controls{mix}"


def main(folder: Path, metric: str, protocols: list[str]) -> None:
    print(f"| protocol | context | trained | adapter | {metric.replace('_', ' ')} | 95 % interval |"
          " gain over ERM · source (paired) |")  # fmt: skip
    print("| --- " * 7 + "|")
    for row in summarise(read(folder)):
        if row.metric != metric or (protocols and row.protocol not in protocols):
            continue
        gain = "–"
        if row.gain is not None:
            gain = f"{100 * row.gain:+.1f} ({span(row.gain_low, row.gain_high, '+')})"
        print(f"| {row.protocol} | {regime(row)} | {row.method} | {row.adapter} |"
              f" {100 * row.mean:.1f} | {span(row.low, row.high)} | {gain} |")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
