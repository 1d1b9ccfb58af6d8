"""The checks at the door: all that is wrong or doubtful about a table, each with its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pandas as pd

from evenfield.data.names import CONTROL_TYPES, NEGCON, as_text, is_position, is_well
from evenfield.data.roles import KEY, Finding, Roles, some

FEW_CONTROLS = 8
"""Below this many rows of controls (images; wells of a table) their statistics are mostly noise."""

CONFOUNDED = 0.3
"""From this Cramer's V on, label and domain count as confounded."""

FOREIGN = 0.05
"""Up to this share of wells that most other plates lack, a plate counts as of their layout."""

WELL_KEY = ["Metadata_Source", "Metadata_Plate", "Metadata_Well"]


def check_manifest(manifest: pd.DataFrame, roles: Roles) -> list[Finding]:
    """All checks at the door, errors first. The table is one that `prepare_manifest` made."""
    absent = [name for name in dict.fromkeys(asdict(roles).values()) if name not in manifest]
    if absent:
        return [
            Finding(
                severity="error",
                check="missing-role",
                message=f"there is no column {', '.join(absent)} to play its role",
                rows=(),
                breaks="nothing can be trained or judged without it",
                fix="add the column, or name another one in the roles",
                units=tuple(absent),
            )
        ]
    checks = (
        _empty_names,
        _bad_wells,
        _repeated_keys,
        _contradictions,
        _unknown_controls,
        _missing_wells,
        _few_controls,
        _context_spans,
        _labels,
    )
    found = [finding for check in checks for finding in check(manifest, roles)]
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda finding: order[finding.severity])


def _rows(mask: pd.Series) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask.to_numpy()).tolist())


def _empty_names(manifest: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    for column in dict.fromkeys((*KEY, roles.context, roles.domain, roles.holdout)):
        empty = manifest[column].isna() | (manifest[column].astype(str) == "")
        if empty.any():
            yield Finding(
                severity="error",
                check="empty-name",
                message=f"{int(empty.sum())} rows have no {column}",
                rows=_rows(empty),
                breaks="images that belong to no unit cannot be normalised, split or joined",
                fix=f"fill {column} in these rows or drop them",
                units=(column,),
            )


def _bad_wells(manifest: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    del roles
    bad = [well for well in manifest["Metadata_Well"].unique() if well and not is_well(well)]
    if bad:
        mask = manifest["Metadata_Well"].isin(bad)
        yield Finding(
            severity="error",
            check="unparsable-well",
            message=f"{int(mask.sum())} rows name wells that do not parse: "
            + some([repr(well) for well in bad]),
            rows=_rows(mask),
            breaks="well-level results and plate maps need the position",
            fix="name wells by row letter and column number, from A01 to AF48",
            units=tuple(bad),
        )


def _repeated_keys(manifest: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    del roles
    repeated = manifest.duplicated(list(KEY), keep=False)
    if repeated.any():
        keys = manifest.loc[repeated, list(KEY)].drop_duplicates().agg("/".join, axis=1).tolist()
        yield Finding(
            severity="error",
            check="repeated-key",
            message=f"{int(repeated.sum())} rows share {len(keys)} keys "
            f"(source/plate/well/site/object): {some(keys)}",
            rows=_rows(repeated),
            breaks="one image would be counted twice, or two would answer to one name",
            fix="drop the repeats, or tell them apart by Metadata_Site, Metadata_Object or a "
            "plate name that is unique over batches",
            units=tuple(keys),
        )


def _contradictions(manifest: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    """A well holds one thing: its rows agree on treatment, label and control type."""
    well = ["Metadata_Source", "Metadata_Plate", "Metadata_Well"]
    groups = manifest.groupby(well, sort=False)
    for column in dict.fromkeys((roles.treatment, roles.label, roles.control)):
        if column in well or manifest[column].dtype.kind == "f":
            continue
        mask = groups[column].transform("nunique") > 1
        if mask.any():
            names = manifest.loc[mask, well].drop_duplicates().agg("/".join, axis=1).tolist()
            yield Finding(
                severity="error",
                check="duplicate-well",
                message=f"{len(names)} wells hold more than one {column}: {some(names)}",
                rows=_rows(mask),
                breaks="the truth of these wells is not known",
                fix="give every well one treatment, label and control type (was a plate map "
                "joined twice?)",
                units=tuple(names),
            )


def _unknown_controls(manifest: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    unknown = ~manifest[roles.control].isin(CONTROL_TYPES)
    if unknown.any():
        counts = manifest.loc[unknown, roles.control].astype(str).value_counts()
        words = [f"{word!r} ({count} rows)" for word, count in counts.items()]
        yield Finding(
            severity="error",
            check="unknown-control",
            message=f"unknown control types in {roles.control}: {some(words)}",
            rows=_rows(unknown),
            breaks="controls that are not recognised would be trained on as treatments",
            fix=f"write one of {', '.join(CONTROL_TYPES)}",
            units=tuple(map(str, counts.index)),
        )


def _missing_wells(manifest: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    """Wells that at least half of a source's plates have and a plate lacks.

    A layout drawn at random for each plate leaves other wells unused on each. There a plate has as
    many wells as the fullest one, or wells that most others lack; where images were lost, neither.
    """
    del roles
    plates = ["Metadata_Source", "Metadata_Plate"]
    wells = manifest.drop_duplicates([*plates, "Metadata_Well"])
    wells = wells[~wells["Metadata_Well"].map(is_position).astype(bool)]
    num_plates = wells.groupby("Metadata_Source")["Metadata_Plate"].nunique()
    lacking: dict[tuple[str, str], int] = {}
    for source, group in wells.groupby("Metadata_Source", sort=True):
        counts = group["Metadata_Well"].value_counts()
        usual = set(counts.index[(counts >= 2) & (2 * counts >= num_plates[source])])
        fullest = int(group["Metadata_Plate"].value_counts().max())
        for plate, own in group.groupby("Metadata_Plate", sort=True)["Metadata_Well"]:
            missing, foreign = usual - set(own), set(own) - usual
            lost = min(len(missing), fullest - len(own))
            if lost > 0 and len(foreign) <= FOREIGN * len(own):
                lacking[str(source), str(plate)] = lost
    if lacking:
        mask = pd.MultiIndex.from_frame(manifest[plates]).isin(list(lacking))
        worst = sorted(lacking.items(), key=lambda item: (-item[1], item[0]))
        yield Finding(
            severity="warning",
            check="missing-wells",
            message=f"{len(lacking)} plates lack wells that most plates of their source have: "
            + some([f"{plate} ({count})" for (_, plate), count in worst]),
            rows=_rows(pd.Series(mask)),
            breaks="plates are compared on different content",
            fix="check whether images were lost; if the layout is meant, go on",
            units=tuple(sorted(plate for _, plate in lacking)),
        )


def _few_controls(manifest: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    is_control = manifest[roles.control] == NEGCON
    counts = is_control.groupby(manifest[roles.context]).sum()
    without, few = counts.index[counts == 0], counts.index[(counts > 0) & (counts < FEW_CONTROLS)]
    if len(without):
        yield Finding(
            severity="warning",
            check="no-controls",
            message=f"{len(without)} of {len(counts)} units of {roles.context} have no negative "
            f"control: {some(list(without))}",
            rows=_rows(manifest[roles.context].isin(without)),
            breaks="what needs controls falls back there (each method says to what)",
            fix="mark negative controls as negcon, or share them over a larger context",
            units=tuple(map(str, without)),
        )
    if len(few):
        listed = [f"{unit} ({counts[unit]})" for unit in few]
        yield Finding(
            severity="warning",
            check="few-controls",
            message=f"{len(few)} of {len(counts)} units of {roles.context} have fewer than "
            f"{FEW_CONTROLS} rows of controls: {some(listed)}",
            rows=_rows(manifest[roles.context].isin(few)),
            breaks="statistics of so few controls are mostly noise",
            fix="add controls (wells, images or crops), or share controls over a larger context",
            units=tuple(map(str, few)),
        )


def _context_spans(manifest: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    key = ["Metadata_Source", roles.domain]
    units = manifest[list(dict.fromkeys([roles.context, *key]))].drop_duplicates()
    counts = units[roles.context].value_counts().sort_index()
    several = counts.index[counts > 1]
    if len(several):
        yield Finding(
            severity="warning",
            check="context-spans",
            message=f"{len(several)} units of {roles.context} lie in more than one source or "
            f"{roles.domain}: {some(list(several))}",
            rows=_rows(manifest[roles.context].isin(several)),
            breaks="their statistics mix batch effects that are not the same",
            fix="make the names unique, for example batch and plate joined by _",
            units=tuple(map(str, several)),
        )
    if (
        manifest[roles.context].nunique() > 1
        and (manifest[roles.domain].astype(str) == manifest[roles.context].astype(str)).all()
    ):
        yield Finding(
            severity="info",
            check="context-is-domain",
            message=f"every unit of {roles.context} is its own {roles.domain}",
            rows=(),
            breaks="leaving a domain out then leaves out one plate only",
            fix="give Metadata_Batch, if plates were made in groups",
        )


def _labels(manifest: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    label = pd.Series(as_text(manifest[roles.label]), index=manifest.index)
    known = (label != "") & ~manifest[roles.control].isin([NEGCON, "empty"])
    classes = sorted(label[known].unique())
    if len(classes) < 2:
        what = f"only the label {classes[0]!r}" if classes else "no label"
        yield Finding(
            severity="warning",
            check="one-class" if classes else "no-labels",
            message=f"{roles.label} holds {what} outside the controls",
            rows=_rows(known),
            breaks="no classifier can be trained on it (predicting with one still works)",
            fix="fill the column, or give another one the role `label`",
            units=tuple(classes),
        )
        return
    domains = manifest[roles.domain].astype(str)
    if domains.nunique() < 2:
        return
    spread = domains[known].groupby(label[known]).nunique()
    single = sorted(spread.index[spread == 1])
    if single:
        yield Finding(
            severity="warning",
            check="label-in-one-domain",
            message=f"{len(single)} of {len(classes)} labels live in one {roles.domain} only: "
            + some(single),
            rows=_rows(known & label.isin(single)),
            breaks="label and batch cannot be told apart there; left out, the label is unknown",
            fix="drop these labels when batches are left out, or repeat them in another batch",
            units=tuple(single),
        )
    wells = manifest[known].drop_duplicates(WELL_KEY).index
    strength = cramers_v(label[wells], domains[wells])
    if strength >= CONFOUNDED:
        yield Finding(
            severity="warning",
            check="label-confounded-with-domain",
            message=f"the {roles.domain} tells much about the label of a well: bias-corrected "
            f"Cramer's V is {strength:.2f} (0 = independent, 1 = one decides the other)",
            rows=_rows(known),
            breaks="a model can score by recognising the batch; a correction of the batch takes "
            "part of the label with it",
            fix="judge on left-out batches only, and spread treatments over batches next time",
            units=tuple(sorted(domains[known].unique())),
        )


def cramers_v(a: pd.Series, b: pd.Series) -> float:
    """Association of two columns, 0 to 1, corrected for the bias of few rows (Bergsma 2013).

    >>> cramers_v(pd.Series([*"aabb"] * 50), pd.Series([*"xxyy"] * 50)) > 0.99
    True
    >>> cramers_v(pd.Series([*"aabb"] * 50), pd.Series([*"xyxy"] * 50))
    0.0
    """
    counts = pd.crosstab(a, b).to_numpy(np.float64)
    total = counts.sum()
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / total
    phi2 = float(((counts - expected) ** 2 / expected).sum() / total)
    rows, columns = counts.shape
    corrected = max(0.0, phi2 - (rows - 1) * (columns - 1) / (total - 1))
    rows_c = rows - (rows - 1) ** 2 / (total - 1)
    columns_c = columns - (columns - 1) ** 2 / (total - 1)
    return float(np.sqrt(corrected / max(min(rows_c - 1, columns_c - 1), 1e-12)))
