"""What the numbers do not show, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evenfield.records import Record
from evenfield.report.artifacts import Artifacts
from evenfield.report.tables import Row
from evenfield.report.verdict import Verdict
from evenfield.report.words import method_name, plural

_SEVERITY = {"error": 0, "warning": 1, "info": 2}


def caveats(
    records: Sequence[Record],
    rows: Sequence[Row],
    found: Verdict,
    artifacts: Artifacts,
    absent: Sequence[str],
) -> list[dict[str, str]]:
    """The list of caveats: the data's, the design's, the measurement's, and what is not shown."""
    items = []

    def add(severity: str, text: str, more: str = "") -> None:
        items.append({"severity": severity, "text": text, "more": more})

    if artifacts.screen.get("simulated"):
        add(
            "warning",
            "The data are simulated. They show that the method does its job where the truth is "
            "known; they are no evidence about your plates.",
            str(artifacts.screen.get("description", "")),
        )
    elif artifacts.screen.get("description"):
        add("info", str(artifacts.screen["description"]))
    items += finding_caveats(artifacts.findings)
    if not artifacts.findings:
        add("info", "The audit of the manifest reported nothing, or was not recorded.")
    if found.num_choices > 1:
        add(
            "info",
            f"{plural(found.num_choices, 'choice')} were measured on the same unseen data and the "
            "verdict names the one with the best mean there; how checkpoints were chosen is in "
            "the configuration of each run.",
        )
    if rows:
        seeds = min(row.num_seeds for row in rows)
        if seeds < 3:
            add("warning", f"At least one number rests on {plural(seeds, 'seed')} only.")
        add(
            "info",
            "Intervals resample held-out domains, not images. With few domains a percentile "
            "interval is too narrow; it does not count the spread between training seeds apart.",
        )
    short = sum(int(value) for value in _largest(records, "short_images").values())
    if short:
        add(
            "warning",
            f"Under label shift, plates lacked {plural(short, 'image')} of the classes drawn, "
            "summed over all cells of the grid; other classes took their place.",
        )
    if absent:
        add("info", f"Not shown, because its records or artifacts are not there: {_and(absent)}.")
    return items


def finding_caveats(findings: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What an audit found, the worst first: what is the matter, what it breaks, what to do."""
    return [
        {
            "severity": str(finding.get("severity", "info")),
            "text": _finding(finding),
            "more": _consequence(finding),
        }
        for finding in sorted(findings, key=_rank)
    ]


def _rank(finding: dict[str, Any]) -> tuple[int, str, str]:
    return (
        _SEVERITY.get(str(finding.get("severity")), 3),
        str(finding.get("check", "")),
        str(finding.get("message", "")),
    )


def _finding(finding: dict[str, Any]) -> str:
    text = str(finding.get("message", "")).strip()
    text = text[:1].upper() + text[1:]
    units = [str(unit) for unit in finding.get("units") or []]
    if units:
        listed = ", ".join(units[:8]) + (f" and {len(units) - 8} more" if len(units) > 8 else "")
        if not all(unit in text for unit in units[:8]):
            text = f"{text.rstrip('.')} ({listed})"
    return f"{text.rstrip('.')}."


def _consequence(finding: dict[str, Any]) -> str:
    parts = []
    if finding.get("breaks"):
        parts.append(f"What it breaks: {str(finding['breaks']).rstrip('.')}.")
    if finding.get("fix"):
        parts.append(f"What to do: {str(finding['fix']).rstrip('.')}.")
    return " ".join(parts)


def _largest(records: Sequence[Record], name: str) -> dict[str, int]:
    """An extra of each cell of the grid (all its records carry the same)."""
    return {record.cell: record.extra[name] for record in records if record.extra.get(name)}


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def provenance(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Fingerprints, configurations, versions and commands, as the records state them."""
    configs: dict[str, set[str]] = {}
    for record in records:
        if record.config:
            configs.setdefault(method_name(record.method) or "all", set()).add(record.config)
    versions = sorted({f"{k} {v}" for record in records for k, v in record.versions.items()})
    commands = sorted({str(r.extra["command"]) for r in records if r.extra.get("command")})
    values = sum(record.kind == "value" for record in records)
    counts = f"{plural(values, 'value')}, {plural(len(records) - values, 'artifact')}"
    found = [
        ("Screen", sorted({record.screen for record in records if record.screen})),
        ("Records", [counts]),
        ("Configurations", [f"{name}: {' '.join(sorted(configs[name]))}" for name in configs]),
        ("Versions", [", ".join(versions)] if versions else []),
        ("Commands", commands),
    ]
    return [(name, value) for name, value in found if value]
