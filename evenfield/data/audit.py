"""The audit: everything that a screen's or a table's design cannot support, before anyone trains.

It is the door's checks, the layout's, and those of the pixels or of the numbers. Each finding says
how bad it is, which rows it concerns, what it breaks and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenfield.data.checks import check_manifest
from evenfield.data.design import check_design
from evenfield.data.image_checks import check_images
from evenfield.data.manifest import prepare_manifest
from evenfield.data.profile_checks import check_rows, check_values
from evenfield.data.roles import Finding, Roles
from evenfield.data.screen import Screen
from evenfield.types import Profiles

_ORDER = {"error": 0, "warning": 1, "info": 2}


def audit_screen(screen: Screen, roles: Roles, *, images: bool = True) -> list[Finding]:
    """What a screen cannot support, the worst first.

    Args:
        screen: The screen.
        roles: Which column plays which role.
        images: Whether the pixels are read, too.
    """
    found = check_manifest(screen.manifest, roles)
    if not _absent(found):
        found = [*found, *check_design(screen.manifest, roles)]
        if images:
            found = [*found, *check_images(screen, roles)]
    return _sorted(found)


def audit_profiles(profiles: Profiles, roles: Roles) -> list[Finding]:
    """What a table of profiles cannot support, the worst first.

    Args:
        profiles: Cells, sites, wells or treatments; NaN and repeated rows are findings.
        roles: Which column plays which role; absent ones get the defaults of a manifest (every
            plate its own batch, no label).
    """
    found = check_values(profiles)
    lacking = [c for c in ("Metadata_Plate", "Metadata_Well") if c not in profiles.metadata]
    if lacking:
        told = Finding(
            severity="info",
            check="no-wells",
            message=f"the table has no {' and no '.join(lacking)}: only its values were looked at",
            rows=(),
            breaks="plates and batches cannot be audited",
            fix="give profiles of wells, before they are aggregated to treatments",
            units=tuple(lacking),
        )
        return _sorted([*found, told])
    manifest = prepare_manifest(profiles.metadata)
    found = [*found, *check_manifest(manifest, roles)]
    if not _absent(found):
        found = [
            *found,
            *check_design(manifest, roles),
            *check_rows(profiles, manifest, roles),
        ]
    return _sorted(found)


def _absent(found: Iterable[Finding]) -> bool:
    return any(finding.check == "missing-role" for finding in found)


def _sorted(found: Iterable[Finding]) -> list[Finding]:
    return sorted(found, key=lambda item: _ORDER[item.severity])
