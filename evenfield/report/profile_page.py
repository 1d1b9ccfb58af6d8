"""One self-contained page from tables of profiles: before correction, and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from evenfield import __version__
from evenfield.data.audit import audit_profiles
from evenfield.data.roles import Roles
from evenfield.data.screen import Screen
from evenfield.errors import InputError
from evenfield.files import whole
from evenfield.records import file_sha256
from evenfield.report.aligned import Aligned, align, level_name, levels
from evenfield.report.caveats import finding_caveats
from evenfield.report.plane import Planes, Rule, planes
from evenfield.report.plate_verdicts import HEADS as PLATE_HEADS
from evenfield.report.plate_verdicts import plate_verdicts
from evenfield.report.profile_figures import forest, trade
from evenfield.report.profile_verdict import ProfileVerdict, change, profile_verdict
from evenfield.report.profile_wells import well_section
from evenfield.report.questions import Asked, ask
from evenfield.report.template import template
from evenfield.report.wells import Pictures, Value, pictures, values
from evenfield.report.words import plural
from evenfield.types import Profiles

PAGE = "compare.html"
SCORE_HEADS = (
    ("question", ""),
    ("table", ""),
    ("better", ""),
    ("value", "n"),
    ("95 % interval", "n"),
    ("change", "n"),
    ("cells alone", "n"),
    ("chance – ceiling", "n"),
    ("scored", "n"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a comparison comes from, for the foot of the page.

    Attributes:
        command: The command line, if there was one.
        files: Each table's name to its file's name and SHA-256.
        versions: Of the software that decides the numbers.
    """

    command: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def build_profile_page(
    tables: Mapping[str, Profiles],
    out: Path,
    *,
    columns: Mapping[str, str] | None = None,
    count: str | None = None,
    screen: Screen | None = None,
    rule: Rule = "auto",
    show: Sequence[str] = (),
    seed: int = 0,
    origin: Origin | None = None,
) -> ProfileVerdict:
    """Judge tables of the same wells and write the page; equal input gives equal bytes.

    Args:
        tables: By name, the one before correction first.
        out: The page, or an existing folder to put `compare.html` in.
        columns: Columns that play another role, see `align`.
        count: The column with the number of cells; None = one of the usual names.
        screen: Where the images of the wells are.
        rule: Of the maps: `auto`, `umap` or `pca`.
        show: More columns or features to draw on plates.
        seed: Of the maps.
        origin: What the foot of the page says.

    Returns:
        What the page says.

    Raises:
        InputError: The tables cannot be compared, see `align`; a wanted column is not there.
        StorageError: The page cannot be written; nothing partial is left.
    """
    aligned = align(tables, columns=columns, count=count)
    asked, untold = ask(aligned)
    found = profile_verdict(aligned.names, asked)
    shown = (found.before, found.best)
    numbers = values(aligned, shown, tuple(show))
    seen = pictures(screen, aligned.metadata) if screen is not None else None
    text = template("profiles").render(
        **_content(
            aligned,
            asked,
            found,
            numbers=numbers,
            maps=planes(aligned.tables, rule=rule, seed=seed),
            seen=seen,
            untold=untold,
            screen=screen,
            seed=seed,
            origin=origin or Origin(),
        )
    )
    with whole(out / PAGE if out.is_dir() else out) as file:
        file.write(text.encode())
    return found


def _content(
    aligned: Aligned,
    asked: Sequence[Asked],
    found: ProfileVerdict,
    *,
    numbers: Sequence[Value],
    maps: Planes,
    seen: Pictures | None,
    untold: Sequence[tuple[str, str]],
    screen: Screen | None,
    seed: int,
    origin: Origin,
) -> dict[str, Any]:
    metadata = aligned.metadata
    shown = (found.before, found.best)
    plates = plate_verdicts(aligned, shown, numbers)
    wells = well_section(aligned, numbers, maps, seen, seed=seed, shown=shown)
    contents = [
        ("maps", "maps"),
        *([("questions", "questions")] if asked else []),
        *([("trade", "mixing against biology")] if found.biology and found.batch else []),
        *([("table", "table")] if asked else []),
        ("verdicts", "plates"),
        ("plates", "plate maps"),
        ("caveats", "caveats"),
    ]
    return {
        "heading": "Evenfield profiles",
        "screen": {"name": f"{found.before} and {plural(len(aligned.names) - 1, 'correction')}"},
        "screen_line": _line(metadata),
        "verdict": found,
        "facts": found.facts,
        "contents": contents,
        "wells": wells,
        "maps_say": maps.says,
        "pictures_say": seen.says if seen is not None else "",
        "biology": [_panel(item, shown) for item in asked if item.question.is_biology],
        "batch": [_panel(item, shown) for item in asked if not item.question.is_biology],
        "trade": (
            trade(found.biology, found.batch, found.best) if found.biology and found.batch else None
        ),
        "scores": _scores(asked, found),
        "score_heads": SCORE_HEADS,
        "plate_heads": PLATE_HEADS,
        "plate_verdicts": plates,
        "caveats": _caveats(aligned, untold, seen, screen),
        "provenance": _provenance(origin, maps, seed),
    }


def _line(metadata: pd.DataFrame) -> str:
    parts = [plural(len(metadata), "well")]
    for column in levels(metadata)[::-1]:
        parts.append(plural(metadata[column].nunique(), level_name(column)))
    return ", ".join(parts)


def _panel(item: Asked, shown: tuple[str, str]) -> dict[str, Any]:
    question = item.question
    arrow = "more is better →" if question.higher else "← fewer is better"
    return {
        "name": question.name,
        "asks": question.asks,
        "measure": f"{question.measure}, {arrow}",
        "drawing": forest(item, shown),
    }


def _scores(asked: Sequence[Asked], found: ProfileVerdict) -> list[dict[str, Any]]:
    lines = []
    for item in asked:
        for place, answer in enumerate(item.answers):
            gain, bounds, counts = "–", "–", "–"
            if answer.low is not None and answer.high is not None:
                bounds = f"{answer.low:.3f} to {answer.high:.3f}"
            if answer.gain is not None:
                gain = f"{answer.gain.mean:+.3f}"
                if answer.gain.low is not None and answer.gain.high is not None:
                    gain += f" ({answer.gain.low:+.3f} to {answer.gain.high:+.3f})"
                gain += {"better": " ✓", "worse": " ✗", "unclear": ""}[change(item, answer)]
            if item.baselines:
                counts = " / ".join(f"{value:.3f}" for value in item.baselines.values())
            score = answer.score
            chance = "?" if score.chance is None else f"{score.chance:.3f}"
            ceiling = f"{score.ceiling:.3f}".removesuffix(".000")
            unit = level_name(item.question.by)
            num = f"{score.num:,}".replace(",", " ")
            lines.append(
                {
                    "kind": "base" if not place else "best" if answer.table == found.best else "",
                    "question": item.question.name,
                    "key": item.question.key,
                    "table": answer.table,
                    "direction": "more" if item.question.higher else "fewer",
                    "cells": [
                        (f"{answer.value:.3f}", f"{answer.value:.6f}"),
                        (bounds, _sortable(answer.low)),
                        (gain, _sortable(answer.gain.mean if answer.gain else None)),
                        (counts, _sortable(next(iter(item.baselines.values()), None))),
                        (f"{chance} – {ceiling}", _sortable(score.chance)),
                        (f"{num} by {unit}", str(score.num)),
                    ],
                }
            )
    return lines


def _sortable(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _caveats(
    aligned: Aligned,
    untold: Sequence[tuple[str, str]],
    seen: Pictures | None,
    screen: Screen | None,
) -> list[dict[str, str]]:
    findings = audit_profiles(aligned.tables[0], Roles())
    items = finding_caveats([asdict(finding) for finding in findings])
    items += [
        {"severity": severity, "text": text, "more": ""}
        for severity, text in (*aligned.notes, *untold)
    ]
    items.append(
        {
            "severity": "info",
            "text": "Intervals resample whole treatments, labels, compounds or plates (the last "
            "column of the table says which), never single wells.",
            "more": "",
        }
    )
    if seen is None:
        items.append(
            {
                "severity": "info",
                "text": "No images: with --screen a well shows its image under the pointer.",
                "more": "",
            }
        )
    elif screen is not None and screen.info["provenance"].get("simulated"):
        items.append({"severity": "warning", "text": "The images are simulated.", "more": ""})
    rank = {"error": 0, "warning": 1, "info": 2}
    return sorted(items, key=lambda item: rank[item["severity"]])


def _provenance(origin: Origin, maps: Planes, seed: int) -> list[tuple[str, list[str]]]:
    versions = ", ".join(f"{name} {text}" for name, text in sorted(origin.versions.items()))
    found = [
        ("Tables", [f"{name}: {text}" for name, text in origin.files.items()]),
        ("Maps", [f"{maps.rule}, seed {seed}"]),
        ("Versions", [versions] if versions else []),
        ("Command", [origin.command] if origin.command else []),
    ]
    return [(name, value) for name, value in found if value]


def origin_of(tables: Mapping[str, Path | str | Profiles], command: str = "") -> Origin:
    """What the foot of the page says about tables: the names of files, with their SHA-256."""
    files = {}
    for name, table in tables.items():
        if not isinstance(table, Profiles) and Path(table).is_file():
            files[name] = f"{Path(table).name} {file_sha256(Path(table))}"
    versions = {"evenfield": __version__}
    if find_spec("umap") is not None:
        versions["umap-learn"] = version("umap-learn")
    return Origin(command=command, files=files, versions=versions)


def table_names(paths: Sequence[Path]) -> list[str]:
    """The names of files without their endings.

    >>> table_names([Path("a/wells.parquet"), Path("b/wells-tvn.csv.gz")])
    ['wells', 'wells-tvn']

    Raises:
        InputError: Two tables have one name.
    """
    names = []
    for path in paths:
        name = path.name
        for end in (".parquet", ".csv.gz", ".csv", ".tsv", ".h5ad", ".zarr"):
            name = name.removesuffix(end)
        names.append(name)
    if len(set(names)) < len(names):
        raise InputError(
            f"two tables have one name: {', '.join(names)}",
            fix="name them with --names, the one before correction first",
        )
    return names
