"""One self-contained page from a results folder: a pure function of its records and artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evenfield.errors import InputError
from evenfield.files import whole
from evenfield.records import Record, read
from evenfield.report import sections
from evenfield.report.artifacts import Artifacts, load
from evenfield.report.caveats import caveats, provenance
from evenfield.report.tables import Row, home_of, summarise
from evenfield.report.template import template
from evenfield.report.verdict import Verdict, verdict
from evenfield.report.words import adapted, method_name, metric_name, number, percent, plural

PAGE = "report.html"


def build(folder: Path, out: Path) -> Path:
    """Write the report of a results folder.

    The same records and artifacts give the same bytes. The page holds everything that it shows and
    loads nothing. A section whose artifact is not there is left out, with a note.

    Args:
        folder: What `evenfield bench` wrote: `records.jsonl` and its artifacts.
        out: The page, or an existing folder to put `report.html` in.

    Returns:
        Where the page was written.

    Raises:
        InputError: No records, records of two screens, or an artifact that is missing, was changed
            or is of an unknown kind.
        StorageError: The page cannot be written; nothing partial is left.
    """
    text = render(folder)
    path = out / PAGE if out.is_dir() else out
    with whole(path) as file:
        file.write(text.encode())
    return path


def render(folder: Path) -> str:
    """The page as text; see `build`."""
    records = read(folder)
    screens = sorted({record.screen for record in records if record.screen})
    if len(screens) > 1:
        raise InputError(
            f"{folder} holds results of {len(screens)} screens ({', '.join(screens)})",
            fix="write one results folder for each screen",
        )
    artifacts = load(folder, records)
    rows = summarise(records)
    found = verdict(rows)
    return template("page").render(**_content(records, rows, found, artifacts))


def _content(
    records: Sequence[Record], rows: Sequence[Row], found: Verdict, artifacts: Artifacts
) -> dict[str, Any]:
    natural = [row for row in rows if row.is_natural]
    picture = {
        "gaps": sections.gaps(natural, found, artifacts),
        "table": sections.table(natural, found),
        "regimes": sections.regimes(rows, found),
        "plates": sections.plates(found, artifacts),
        "matrices": sections.matrices(found, artifacts),
        "fields": sections.fields(artifacts),
        "mixes": sections.mixes(artifacts),
        "drift": sections.drift(artifacts),
        "maps": sections.maps(found, artifacts),
    }
    names = {
        "gaps": ("gap", "gap plot"),
        "table": ("table", "table"),
        "regimes": ("regimes", "regimes"),
        "plates": ("plates", "plate maps"),
        "matrices": ("confusion", "confusion matrices"),
        "fields": ("fields", "example fields"),
        "mixes": ("mixes", "mixes"),
        "drift": ("drift", "control drift"),
        "maps": ("embedding", "embedding map"),
    }
    wanted = names.keys() - {"regimes", "mixes"}  # only some benchmarks have these
    absent = [names[key][1] for key in names if key in wanted and not picture[key]]
    contents = [names[key] for key in names if picture[key]]
    screen = artifacts.screen
    return {
        **picture,
        "verdict": found,
        "metric": metric_name(found.metric).capitalize(),
        "facts": _facts(found),
        "heading": "Evenfield report",
        "screen": {"name": str(screen.get("name", ""))},
        "screen_line": _screen_line(screen),
        "filters": sections.filters(natural, found),
        "table_heads": sections.TABLE_HEADS,
        "contents": [*contents, ("caveats", "caveats")],
        "caveats": caveats(records, rows, found, artifacts, absent),
        "provenance": provenance(records),
    }


def _screen_line(screen: dict[str, Any]) -> str:
    parts = []
    for key, unit in (("images", "image"), ("plates", "plate"), ("batches", "batch")):
        count = screen.get(f"num_{key}")
        if count:
            parts.append(plural(int(count), unit))
    if screen.get("simulated"):
        parts.append("simulated")
    return ", ".join(parts)


def _facts(found: Verdict) -> list[dict[str, str]]:
    """The two to four numbers of the verdict, large."""
    facts = []

    def add(row: Row, text: str, tone: str) -> None:
        value = number(row.mean, row.metric) if row.metric == "nll" else percent(row.mean)
        facts.append({"text": text, "value": value, "tone": tone})

    if found.at_home is not None:
        add(found.at_home, "ERM on its own training batches", "")
    if found.baseline is not None:
        add(found.baseline, "ERM on unseen data, without adaptation", "bad")
    best = found.best
    if best is not None and best.protocol != home_of(best.protocol) and best != found.baseline:
        add(best, f"{method_name(best.method)} on unseen data, {adapted(best.adapter)}", "good")
        if best.gap_closed is not None:
            share = "all" if best.gap_closed >= 1 else percent(best.gap_closed)
            facts.append({"text": "of ERM's loss won back", "value": share, "tone": "good"})
    return facts
