"""What a layout cannot support: treatments without partners, positions that tell the treatment."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from evenfield.data.checks import WELL_KEY, cramers_v
from evenfield.data.names import NEGCON, as_text, is_position
from evenfield.data.roles import Finding, Roles, some

IMBALANCED = 10.0
"""From this ratio of the largest to the smallest class on, a metric's average hides the small."""
TIED = 0.5
"""From this Cramer's V on, a row or column of the plate tells the label."""
DOSE_ORDER = 0.9
"""From this rank correlation on, doses count as laid out in order."""
_WELL = re.compile(r"([A-Z]{1,2})([0-9]{2})")


def check_design(manifest: pd.DataFrame, roles: Roles) -> list[Finding]:
    """The checks of the layout. The table is one that `prepare_manifest` made, with its roles."""
    treated = ~manifest[roles.control].isin([NEGCON, "empty"])
    wells = manifest[treated].drop_duplicates(WELL_KEY)
    if not len(wells):
        return []
    checks = (_lonely_treatments, _classes, _positions, _doses)
    return [finding for check in checks for finding in check(manifest, wells, roles)]


def _rows(manifest: pd.DataFrame, roles: Roles, column: str, names: list[str]) -> tuple[int, ...]:
    """Treated rows whose column names one of some units."""
    treated = ~manifest[roles.control].isin([NEGCON, "empty"])
    return tuple(np.flatnonzero(treated & manifest[column].astype(str).isin(names)).tolist())


def _lonely_treatments(
    manifest: pd.DataFrame, wells: pd.DataFrame, roles: Roles
) -> Iterator[Finding]:
    treatment = pd.Series(as_text(wells[roles.treatment]), index=wells.index)
    known = treatment != ""
    groups = wells[known].groupby(treatment[known])
    num = groups.size()
    single = sorted(num.index[num == 1])
    if single:
        yield Finding(
            severity="info",
            check="one-well-treatments",
            message=f"{len(single)} of {len(num)} treatments have one well: {some(single)}",
            rows=_rows(manifest, roles, roles.treatment, single),
            breaks="replicates cannot be compared; retrieval of replicates leaves them out",
            fix="add replicates, or judge by mechanism",
            units=tuple(single),
        )
    if wells[roles.domain].nunique() < 2:
        return
    spread = groups[roles.domain].nunique()
    alone = sorted(spread.index[spread == 1])
    if alone:
        yield Finding(
            severity="warning",
            check="treatment-in-one-domain",
            message=f"{len(alone)} of {len(num)} treatments live in one {roles.domain} only: "
            + some(alone),
            rows=_rows(manifest, roles, roles.treatment, alone),
            breaks="what the treatment does and what the batch does cannot be told apart there; "
            "retrieval across batches leaves them out",
            fix="repeat them in another batch, or judge inside batches only",
            units=tuple(alone),
        )


def _classes(manifest: pd.DataFrame, wells: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    label = pd.Series(as_text(wells[roles.label]), index=wells.index)
    counts = label[label != ""].value_counts()
    if len(counts) < 2:
        return
    few = sorted(counts.index[counts < 2])
    if few:
        yield Finding(
            severity="warning",
            check="one-well-classes",
            message=f"{len(few)} of {len(counts)} labels have one well: {some(few)}",
            rows=_rows(manifest, roles, roles.label, few),
            breaks="such a class can be trained on or judged, never both",
            fix="leave these labels out (`split.exclude`), or add wells",
            units=tuple(few),
        )
    largest, smallest = counts.index[0], counts.index[-1]
    if counts.iloc[0] >= IMBALANCED * counts.iloc[-1]:
        yield Finding(
            severity="warning",
            check="class-imbalance",
            message=f"the label {largest!r} has {counts.iloc[0]} wells, {smallest!r} "
            f"{counts.iloc[-1]}: {counts.iloc[0] / counts.iloc[-1]:.0f} times fewer",
            rows=_rows(manifest, roles, roles.label, [str(smallest)]),
            breaks="accuracy says mostly how well the large class is recognised",
            fix="read balanced accuracy and macro F1; merge or leave out tiny classes",
            units=(str(largest), str(smallest)),
        )


def places(wells: pd.Series) -> pd.DataFrame:
    """Row and column numbers of wells, from 1; patches of slides have none.

    >>> places(pd.Series(["A01", "AF48"])).to_numpy().tolist()
    [[1.0, 1.0], [32.0, 48.0]]
    """
    found = {}
    for well in wells.unique():
        match = _WELL.fullmatch(str(well))
        if match and not is_position(well):
            letters = match[1]
            row = ord(letters[-1]) - 64 + (26 * (ord(letters[0]) - 64) if len(letters) == 2 else 0)
            found[well] = (float(row), float(match[2]))
    pairs = [found.get(well, (np.nan, np.nan)) for well in wells]
    return pd.DataFrame(pairs, columns=["row", "column"], index=wells.index)


def _positions(manifest: pd.DataFrame, wells: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    place = places(wells["Metadata_Well"])
    if place["row"].isna().any():
        return
    treatment = pd.Series(as_text(wells[roles.treatment]), index=wells.index)
    known = treatment != ""
    groups = wells[known].groupby(treatment[known])
    plates = groups["Metadata_Plate"].nunique()
    spots = groups["Metadata_Well"].nunique()
    per_plate = groups.size() / plates
    several = plates.index[plates > 1]
    # As many spots as wells on one plate: the treatment never moves.
    fixed = sorted(name for name in several if spots[name] <= per_plate[name])
    if fixed and 2 * len(fixed) >= len(several):
        yield Finding(
            severity="warning",
            check="treatment-tied-to-position",
            message=f"{len(fixed)} of {len(several)} treatments that are on several plates lie in "
            f"the same wells on all of them: {some(fixed)}",
            rows=_rows(manifest, roles, roles.treatment, fixed),
            breaks="replicates are alike by their place on the plate, too: retrieval of replicates "
            "is too good",
            fix="judge by mechanism over different wells, compare with the null of the same wells, "
            "and place treatments at random next time",
            units=tuple(fixed),
        )
    label = pd.Series(as_text(wells[roles.label]), index=wells.index)
    own = label != ""
    if label[own].nunique() < 2:
        return
    strength = {side: cramers_v(label[own], place.loc[own, side]) for side in ("row", "column")}
    side = max(strength, key=lambda name: strength[name])
    if strength[side] >= TIED:
        yield Finding(
            severity="warning",
            check="label-tied-to-position",
            message=f"the {side} of a well tells much about its label: bias-corrected Cramer's V "
            f"is {strength[side]:.2f}",
            rows=tuple(np.flatnonzero(manifest[roles.label].isin(set(label[own]))).tolist()),
            breaks="a model can score by edge and gradient effects of the plate",
            fix="correct for position (`regress-out` of row and column, learned on controls), and "
            "place labels at random next time",
            units=(side,),
        )


def _doses(manifest: pd.DataFrame, wells: pd.DataFrame, roles: Roles) -> Iterator[Finding]:
    """Doses of a compound that rise along rows or columns."""
    if "Metadata_Concentration" not in wells or "Metadata_Compound" not in wells:
        return
    place = places(wells["Metadata_Well"])
    dose = wells["Metadata_Concentration"].astype(float)
    usable = dose.notna() & place["row"].notna() & (wells["Metadata_Compound"].astype(str) != "")
    tied: list[str] = []
    num = 0
    for compound, own in wells[usable].groupby("Metadata_Compound").groups.items():
        if dose[own].nunique() < 3:
            continue
        num += 1
        ranks = rankdata(dose[own])
        for side in ("row", "column"):
            along = rankdata(place.loc[own, side])
            if along.std() and abs(np.corrcoef(ranks, along)[0, 1]) >= DOSE_ORDER:
                tied.append(str(compound))
                break
    if tied and 2 * len(tied) >= num:
        yield Finding(
            severity="warning",
            check="dose-tied-to-position",
            message=f"doses of {len(tied)} of {num} compounds rise along rows or columns: "
            + some(tied),
            rows=_rows(manifest, roles, "Metadata_Compound", tied),
            breaks="a response to the dose and a gradient over the plate look the same",
            fix="correct for position on controls that are spread over the plate, and place doses "
            "at random next time",
            units=tuple(tied),
        )
