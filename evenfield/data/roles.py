"""What a row is called, which column plays which role, and what a check at the door may find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evenfield.errors import InputError

KEY = ("Metadata_Source", "Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_Object")
"""What names an image: no two rows of a manifest share it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check at the door found.

    Attributes:
        severity: `error` (the screen is refused), `warning` or `info`.
        check: The check's short name.
        message: What is the matter, with names and counts.
        rows: The rows of the manifest that it concerns.
        breaks: What goes wrong later because of it.
        fix: The next step.
        units: The plates, domains, labels or words that it concerns.
    """

    severity: str
    check: str
    message: str
    rows: tuple[int, ...]
    breaks: str
    fix: str
    units: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Which column plays which role.

    Attributes:
        label: What is predicted.
        treatment: What was put in the well.
        control: The control type (negcon, poscon, trt, empty).
        context: Whose statistics are shared: what an adapter learns from.
        domain: What carries the batch effect: what losses and pairs compare.
        holdout: What a protocol leaves out.
    """

    label: str = "Metadata_Label"
    treatment: str = "Metadata_Treatment"
    control: str = "Metadata_ControlType"
    context: str = "Metadata_Plate"
    domain: str = "Metadata_Batch"
    holdout: str = "Metadata_Batch"


def require(findings: Iterable[Finding]) -> None:
    """Refuse a screen with errors.

    Raises:
        InputError: With every error finding, its rows and its fix.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise InputError(
            "; ".join(f"{finding.message} (rows {some(finding.rows)})" for finding in errors),
            fix="; ".join(dict.fromkeys(finding.fix for finding in errors)),
        )


def some(items: Sequence[object], most: int = 8) -> str:
    """The first items as text, and how many more there are.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    text = ", ".join(map(str, items[:most]))
    return text if len(items) <= most else f"{text} and {len(items) - most} more"
