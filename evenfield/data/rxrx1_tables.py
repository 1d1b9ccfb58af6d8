"""The tables of RxRx1 in one form, what must hold of them, and the groups of its treatments.

Design of the data set: `rxrx1/README.md` of recursionpharma/rxrx-datasets; the groups of 277
treatments and the leak: winners of the Kaggle competition of 2019.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from evenfield.data.sources.base import read_table
from evenfield.errors import InputError

NUM_TREATMENTS, NEGATIVE, NUM_EXPERIMENTS = 1108, 1138, 51
MOST_WELLS = 308
_OFFICIAL = ("cell_type", "dataset", "experiment", "plate", "well", "site", "well_type", "sirna_id")
_KAGGLE = ("experiment", "plate", "well")
_INNER = [f"{row}{column:02d}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24)]
_KINDS = {"treatment": "trt", "positive_control": "poscon", "negative_control": "negcon"}


def official_table(folder: Path) -> pd.DataFrame:
    """metadata.csv, one row a site, with the control type as `kind`.

    Raises:
        InputError: It is missing, damaged or lacks a column.
    """
    table = _read(folder / "metadata.csv", _OFFICIAL)
    return table.assign(kind=table["well_type"].map(_KINDS).fillna(table["well_type"]))


def kaggle_table(folder: Path) -> pd.DataFrame:
    """Kaggle's four tables (one row a well) in the official form (one row a site).

    The labels of the test treatments are not in them: their `sirna_id` is "".

    Raises:
        InputError: A table is missing, damaged or lacks a column.
    """
    parts = []
    for dataset in ("train", "test"):
        wells = _read(folder / f"{dataset}.csv", _KAGGLE).assign(kind="trt")
        controls = _read(folder / f"{dataset}_controls.csv", (*_KAGGLE, "sirna", "well_type"))
        kind = controls["well_type"].map(_KINDS).fillna(controls["well_type"])
        parts += [part.assign(dataset=dataset) for part in (wells, controls.assign(kind=kind))]
    wells = pd.concat(parts, ignore_index=True)
    wells["sirna_id"] = wells["sirna"].fillna("")
    wells["cell_type"] = wells["experiment"].map(_cell_types(wells))
    wanted = ["dataset", "experiment", "plate", "well", "kind", "sirna_id", "cell_type"]
    table = wells[wanted].loc[wells.index.repeat(2)].reset_index(drop=True)
    return table.assign(site=np.tile(np.array(["1", "2"], dtype=object), len(wells)))


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    table = read_table(path)
    if lost := [column for column in columns if column not in table]:
        raise InputError(f"{path} lacks {', '.join(lost)}", fix="use the original table")
    return table


def _cell_types(table: pd.DataFrame) -> dict[str, str]:
    """The cell type that each experiment's name begins with."""
    return {name: name.split("-")[0] for name in table["experiment"].unique()}


def check_tables(table: pd.DataFrame) -> None:
    """What holds of every part of RxRx1.

    Raises:
        InputError: With the first rule that is broken, and its first row.
    """
    number = pd.to_numeric(table["sirna_id"].where(table["sirna_id"] != "", "-1"), errors="coerce")
    unlabelled = table["sirna_id"] == ""
    ranges = {
        "trt": unlabelled | number.between(0, NUM_TREATMENTS - 1),
        "poscon": number.between(NUM_TREATMENTS, NEGATIVE - 1),
        "negcon": number == NEGATIVE,
    }
    _demand(table, table["kind"].isin(list(ranges)), "has an unknown well_type")
    fits = np.select([table["kind"] == kind for kind in ranges], list(ranges.values()), False)
    _demand(table, fits, "has a well_type that does not fit its siRNA (0 to 1107 treatments, up to "
            "1137 positive controls, 1138 the negative one)")  # fmt: skip
    named = table["experiment"].map(_cell_types(table))
    _demand(table, named == table["cell_type"], "has another cell type than its experiment's name")
    _demand(table, table["plate"].isin(list("1234")), "is on no plate from 1 to 4")
    _demand(table, table["site"].isin(["1", "2"]), "is no site 1 or 2")
    _demand(table, table["well"].isin(_INNER), "lies outside of B02 to O23")
    key = ["experiment", "plate", "well"]
    _demand(table, ~table.duplicated([*key, "site"]), "is a repeated site")
    wells = table.drop_duplicates(key)
    num = wells.groupby(["experiment", "plate"])["well"].transform("size")
    _demand(wells, num <= MOST_WELLS, f"is on a plate of more than {MOST_WELLS} wells")
    treatments = wells[(wells["kind"] == "trt") & (wells["sirna_id"] != "")]
    repeated = treatments.duplicated(["experiment", "sirna_id"])
    _demand(treatments, ~repeated, "repeats a treatment in its experiment")


def check_sizes(table: pd.DataFrame) -> None:
    """What holds of the whole data set.

    Raises:
        InputError: With the first count that is not met.
    """
    part = "for a part of the data set, set check_sizes to False"
    num = table["sirna_id"].replace("", np.nan).nunique()
    if num != NEGATIVE + 1:
        raise InputError(f"the tables name {num} siRNAs, not {NEGATIVE + 1}", fix=part)
    plates = table.groupby("experiment")["plate"].nunique()
    if len(plates) != NUM_EXPERIMENTS:
        raise InputError(
            f"the tables name {len(plates)} experiments, not {NUM_EXPERIMENTS}", fix=part
        )
    few = plates.index[plates != 4].tolist()
    if few:
        raise InputError(f"{few[0]} has {plates[few[0]]} plates, not 4", fix=part)


def _demand(table: pd.DataFrame, holds: object, problem: str) -> None:
    broken = np.flatnonzero(~np.asarray(holds, dtype=bool))
    if len(broken):
        row = table.iloc[broken[0]]
        name = f"{row['experiment']} plate {row['plate']} well {row['well']} site {row['site']}"
        more = f" (and {len(broken) - 1} more rows)" if len(broken) > 1 else ""
        raise InputError(
            f"RxRx1: {name}, siRNA {row['sirna_id'] or 'unknown'}, {problem}{more}",
            fix="use the original tables",
        )


def treatment_groups(table: pd.DataFrame) -> np.ndarray:
    """Which of the four groups each row's treatment travels in, "0" to "3".

    A group is what shares a plate in every experiment; its number is that of the plate (from 0) in
    the experiment with most labelled treatments. Controls have no group (""), nor have unlabelled
    plates.

    Raises:
        InputError: Treatments of one plate belong to different groups.
    """
    labelled = (table["kind"] == "trt") & (table["sirna_id"] != "")
    wells = table.loc[labelled, ["experiment", "plate", "sirna_id"]].drop_duplicates()
    counts = wells["experiment"].value_counts()
    group_of: dict[str, str] = {}
    order = sorted(counts.index, key=lambda name: (-counts[name], name))
    plates = {name: part.groupby("plate")["sirna_id"] for name, part in wells.groupby("experiment")}
    for experiment in order:
        for plate, sirna in plates[experiment]:
            known = sirna.map(group_of).dropna()
            if experiment == order[0]:
                known = known[:0]
            elif not len(known):
                continue
            group = known.mode()[0] if len(known) else str(int(str(plate)) - 1)
            strangers = known.index[known != group]
            if len(strangers):
                raise InputError(
                    f"RxRx1: {experiment} plate {plate}: siRNA {sirna[strangers[0]]} is of group "
                    f"{known[strangers[0]]}, the plate of group {group}",
                    fix="use the original tables",
                )
            group_of.update(dict.fromkeys(sirna, group))
    return np.where(labelled, table["sirna_id"].map(group_of).fillna(""), "").astype(object)
