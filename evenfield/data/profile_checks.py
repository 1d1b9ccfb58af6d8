"""What a table of profiles says by itself: values, features, copies, plates that stand apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pandas as pd

from evenfield.data.copies import check_copies
from evenfield.data.drift import trend, units_apart
from evenfield.data.names import NEGCON
from evenfield.data.roles import Finding, Roles, some
from evenfield.types import Profiles


def check_values(profiles: Profiles) -> list[Finding]:
    """Checks that need no metadata."""
    return [*_not_finite(profiles), *_without_spread(profiles)]


def check_rows(profiles: Profiles, manifest: pd.DataFrame, roles: Roles) -> list[Finding]:
    """Checks that need to know which row is which.

    Args:
        profiles: n rows.
        manifest: What `prepare_manifest` made of their metadata.
        roles: Which column plays which role.
    """
    finite = np.isfinite(profiles.features).all(1)
    rows = np.ascontiguousarray(profiles.features)
    content = [
        hashlib.blake2b(row, digest_size=16).digest() if fine and row.any() else None
        for row, fine in zip(rows, finite, strict=True)
    ]
    return [
        *check_copies(manifest, content, roles, "profiles"),
        *_control_plates(profiles, manifest, roles),
    ]


def _not_finite(profiles: Profiles) -> Iterator[Finding]:
    bad = ~np.isfinite(profiles.features)
    if bad.any():
        names = [profiles.names[i] for i in np.flatnonzero(bad.any(0))]
        yield Finding(
            severity="error",
            check="not-finite",
            message=f"{int(bad.sum())} values in {len(names)} features are NaN or infinite: "
            + some(names),
            rows=tuple(np.flatnonzero(bad.any(1)).tolist()),
            breaks="no distance to these rows exists; correctors refuse them",
            fix="put `select-features` first: it drops such features; or leave the rows out",
            units=tuple(names),
        )


def _without_spread(profiles: Profiles) -> Iterator[Finding]:
    x = profiles.features
    finite = np.isfinite(x)
    flat = np.where(finite, x, -np.inf).max(0) <= np.where(finite, x, np.inf).min(0)
    if len(x) > 1 and flat.any():
        names = [profiles.names[i] for i in np.flatnonzero(flat)]
        yield Finding(
            severity="warning",
            check="constant-features",
            message=f"{len(names)} features have one value in all rows: {some(names)}",
            rows=(),
            breaks="they say nothing, and scaling them divides by nothing",
            fix="put `select-features` first",
            units=tuple(names),
        )


def _control_plates(profiles: Profiles, manifest: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    """Plates whose controls lie far from the others', in units of the controls' own spread."""
    control = (manifest[roles.control] == NEGCON).to_numpy()
    x = profiles.features[control].astype(np.float64)
    keep = np.isfinite(x).all(0) if len(x) else np.zeros(0, dtype=bool)
    if len(x) < 2 or not keep.any():
        return
    x = x[:, keep]
    names = np.array(profiles.names)[keep]
    spread = 1.4826 * np.median(np.abs(x - np.median(x, axis=0)), axis=0)
    if (flat := spread <= 1e-12 * np.abs(x).max(0)).any():
        yield Finding(
            severity="warning",
            check="no-spread-in-controls",
            message=f"{int(flat.sum())} features are (nearly) constant in the controls: "
            + some(names[flat].tolist()),
            rows=tuple(np.flatnonzero(control).tolist()),
            breaks="scaling by the controls' spread divides by nothing and blows these up",
            fix="put `select-features` first, or scale on all rows",
            units=tuple(names[flat].tolist()),
        )
        if flat.all():
            return
    z = (x[:, ~flat] - np.median(x[:, ~flat], axis=0)) / spread[~flat]
    plate = manifest.loc[control, roles.context].astype(str).to_numpy()
    centres = pd.DataFrame(z).groupby(plate).median()
    shift = pd.Series(np.sqrt((centres.to_numpy() ** 2).mean(1)), index=centres.index)
    # One spread of the controls: below that a plate is hardly apart, however alike the others are.
    if units := units_apart(shift, 1.0):
        yield Finding(
            severity="warning",
            check="control-plates-apart",
            message=f"the controls of {len(units)} units of {roles.context} lie far from the "
            f"others': {some([f'{unit} ({shift[unit]:.1f} spreads)' for unit in units])}",
            rows=tuple(np.flatnonzero(manifest[roles.context].astype(str).isin(units)).tolist()),
            breaks="the plate is told by its controls",
            fix="correct per plate on controls (tvn, mad-robustize), and look whether it helps; "
            "leave the plate out if not",
            units=tuple(units),
        )
    if len(centres) > 2:
        centred = centres.to_numpy() - centres.to_numpy().mean(0)
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        first = pd.Series(u[:, 0] * s[0], index=centres.index)
        yield from trend(manifest, roles, first, "the first principal axis")
