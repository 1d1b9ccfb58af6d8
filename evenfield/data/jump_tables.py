"""The tables of JUMP-CP and their joins: plate, well, perturbation; no image is multiplied.

Tables: jump-cellpainting/datasets, folder `metadata`; plate maps: jump-cellpainting/JUMP-Target.
Each join is many to one on a key that must be unique; what finds no partner is named, never lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evenfield.data.names import is_well, map_control, normalise_well
from evenfield.data.roles import some
from evenfield.data.sources.base import read_table
from evenfield.errors import InputError

SOURCE, BATCH, PLATE, WELL = (f"Metadata_{name}" for name in ("Source", "Batch", "Plate", "Well"))
JCP, INCHIKEY = "Metadata_JCP2022", "Metadata_InChIKey"
DMSO, EMPTY = "JCP2022_033924", "JCP2022_999999"
TARGET2_WELLS, TARGET2_DMSO = 384, 64
_PERTURBATIONS = ("compound", "orf", "crispr")
_CARRIED = {  # what of each perturbation's table travels with the images
    "compound": (INCHIKEY, "Metadata_SMILES"),
    "orf": ("Metadata_Symbol",),
    "crispr": ("Metadata_Symbol",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JumpTables:
    """The tables of the consortium, as text, each with its key unique.

    Attributes:
        plate: Metadata_Source, _Batch, _Plate, _PlateType; one row a plate.
        well: Metadata_Source, _Plate, _Well (as A01), _JCP2022; one row a well.
        control: Metadata_JCP2022, _pert_type; one row a control.
        perturbations: `compound`, `orf`, `crispr`, as far as the files are there; one row each.
        pixel_size_um: Source to the side of a pixel in micrometres, where known.
        microscope: Source to the microscope's name, where known.
    """

    plate: pd.DataFrame
    well: pd.DataFrame
    control: pd.DataFrame
    perturbations: dict[str, pd.DataFrame]
    pixel_size_um: dict[str, float]
    microscope: dict[str, str]


def read_jump_tables(folder: Path) -> JumpTables:
    """Read plate, well, perturbation_control, and compound, orf, crispr, microscope_config.

    The last four may be missing; each file may end in .csv or .csv.gz.

    Raises:
        InputError: One of the first three is missing, a column is missing, or a key is repeated.
    """
    plate = _table(folder, "plate", (SOURCE, PLATE), (BATCH, "Metadata_PlateType"))
    well = _table(folder, "well", (SOURCE, PLATE, WELL), (JCP,), wells=True)
    control = _table(folder, "perturbation_control", (JCP,), ("Metadata_pert_type",))
    perturbations = {
        name: _table(folder, name, (JCP,), _CARRIED[name][:1])
        for name in _PERTURBATIONS
        if _path(folder, name) is not None
    }
    sizes: dict[str, float] = {}
    names: dict[str, str] = {}
    if _path(folder, "microscope_config") is not None:
        side, name = "Metadata_Pixel_Size_Microns", "Metadata_Microscope_Name"
        scope = _table(folder, "microscope_config", (SOURCE,), (side, name))
        numbers = pd.to_numeric(scope[side], errors="coerce")
        sizes = {s: float(n) for s, n in zip(scope[SOURCE], numbers, strict=True) if n > 0}
        names = dict(zip(scope[SOURCE], scope[name], strict=True))
    return JumpTables(
        plate=plate, well=well, control=control, perturbations=perturbations,
        pixel_size_um=sizes, microscope=names,
    )  # fmt: skip


def _path(folder: Path, name: str) -> Path | None:
    paths = (folder / f"{name}.csv.gz", folder / f"{name}.csv")
    return next((path for path in paths if path.is_file()), None)


def _table(
    folder: Path, name: str, key: tuple[str, ...], columns: tuple[str, ...], *, wells: bool = False
) -> pd.DataFrame:
    path = _path(folder, name)
    if path is None:
        raise InputError(
            f"there is no {name}.csv.gz in {folder}",
            fix="give the folder `metadata` of jump-cellpainting/datasets",
        )
    table = read_table(path)
    if lost := [column for column in (*key, *columns) if column not in table]:
        raise InputError(f"{path} lacks {', '.join(lost)}", fix="use the table of the consortium")
    if wells:
        table = table.assign(**{WELL: normal_wells(table[WELL])})
    repeated = table[table.duplicated(list(key), keep=False)]
    if len(repeated):
        names = ["/".join(row) for row in repeated[list(key)].drop_duplicates().to_numpy()]
        raise InputError(
            f"{path} repeats {len(names)} of its keys ({', '.join(k[9:] for k in key)}): "
            f"{some(names)}",
            fix="keep one row of each: a join would multiply images",
        )
    return table


def normal_wells(wells: pd.Series) -> np.ndarray:
    """Names of wells as A01; what does not parse stays, and the checks at the door name it."""
    codes, names = pd.factorize(wells.astype(str))
    return np.array([normalise_well(n) if is_well(n) else n for n in names], dtype=object)[codes]


def select_plates(
    tables: JumpTables,
    *,
    plate_type: str = "TARGET2",
    sources: Sequence[str] = (),
    batches: Sequence[str] = (),
    plates: Sequence[str] = (),
) -> pd.DataFrame:
    """The rows of the plate table that fit all of it; empty choices fit everything.

    Raises:
        InputError: A name is not in the table, or no plate fits.
    """
    table = tables.plate
    keep = pd.Series(True, index=table.index)
    kind = (plate_type,) if plate_type else ()
    for column, names in (
        ("Metadata_PlateType", kind), (SOURCE, sources), (BATCH, batches), (PLATE, plates)
    ):  # fmt: skip
        if unknown := sorted(set(names) - set(table[column])):
            raise InputError(
                f"the plate table has no {column[9:]} {some(unknown)}",
                fix=f"choose from {some(sorted(set(table[column])), 20)}",
            )
        if names:
            keep &= table[column].isin(names)
    if not keep.any():
        raise InputError(
            f"no plate is of type {plate_type or 'any'}, source {some(sources) or 'any'}, batch "
            f"{some(batches) or 'any'} and name {some(plates) or 'any'} at once",
            fix="choose fewer restrictions",
        )
    return table[keep].reset_index(drop=True)


def join_tables(sites: pd.DataFrame, tables: JumpTables) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Plate, well and perturbation of each image; order and number of the rows stay.

    Adds Metadata_Batch, _PlateType, _JCP2022, _InChIKey, _Symbol, _Compound (the JCP2022 number),
    _ControlType and _Microscope.

    Args:
        sites: One row an image, with Metadata_Source, _Plate and _Well.
        tables: What is joined.

    Returns:
        The images, and notes on wells that no table knows and on batches that differ.

    Raises:
        InputError: A plate is not in the plate table.
    """
    table = sites.assign(**{WELL: normal_wells(sites[WELL])})
    row = _rows(tables.plate, table, [SOURCE, PLATE])
    if (row < 0).any():
        names = ["/".join(pair) for pair in _distinct(table[row < 0], [SOURCE, PLATE])]
        raise InputError(
            f"{len(names)} plates are not in the plate table: {some(names)}",
            fix="use the newest tables, or leave these plates out",
        )
    batch = tables.plate[BATCH].to_numpy()[row]
    notes: tuple[str, ...] = ()
    if BATCH in table and (other := (table[BATCH] != batch) & (table[BATCH] != "")).any():
        plate, wrong = table.loc[other, [PLATE, BATCH]].iloc[0]
        notes += (
            f"load_data of {table.loc[other, PLATE].nunique()} plates names another batch than the "
            f"plate table, which is followed (plate {plate}: {wrong}, not "
            f"{batch[other.to_numpy()][0]})",
        )
    table[BATCH] = batch
    table["Metadata_PlateType"] = tables.plate["Metadata_PlateType"].to_numpy()[row]
    row = _rows(tables.well, table, [SOURCE, PLATE, WELL])
    notes += _without_well(table, row < 0)
    table[JCP] = np.where(row < 0, "", tables.well[JCP].to_numpy()[row])
    known = np.isin(table[JCP], ["", EMPTY])
    for name, perturbation in tables.perturbations.items():
        found = _rows(perturbation, table, [JCP])
        known |= found >= 0
        for column in _CARRIED[name]:
            if column in perturbation:
                old = table.get(column, "")
                table[column] = np.where(found < 0, old, perturbation[column].to_numpy()[found])
    if "compound" not in tables.perturbations:
        notes += (
            "there is no compound.csv.gz, so images have no InChIKey and no mechanism can be "
            "joined to them by it",
        )
    elif not known.all():
        lost = sorted(set(table.loc[~known, JCP]))
        notes += (f"{len(lost)} perturbations are in no table: {some(lost)}",)
    row = _rows(tables.control, table, [JCP])
    kinds = np.array([map_control(word) for word in tables.control["Metadata_pert_type"]], object)
    table["Metadata_ControlType"] = np.where(row < 0, "trt", kinds[row])
    table["Metadata_Compound"] = table[JCP]
    table["Metadata_Microscope"] = [tables.microscope.get(name, "") for name in table[SOURCE]]
    return table, notes


def _without_well(table: pd.DataFrame, lost: np.ndarray) -> tuple[str, ...]:
    """Name plates of which no well is known, and single wells of others."""
    if not lost.any():
        return ()
    notes: tuple[str, ...] = ()
    wells = table[[SOURCE, PLATE, WELL]].assign(lost=lost).drop_duplicates()
    whole = wells.groupby([SOURCE, PLATE], sort=True)["lost"].transform("all")
    means = "their images have no treatment and no label"
    if whole.any():
        plates = ["/".join(pair) for pair in _distinct(wells[whole], [SOURCE, PLATE])]
        notes += (f"the well table lacks {len(plates)} plates ({some(plates)}): {means}",)
    single = wells[wells["lost"] & ~whole]
    if len(single):
        names = ["/".join(name) for name in _distinct(single, [PLATE, WELL])]
        notes += (f"the well table lacks {len(names)} wells ({some(names)}): {means}",)
    return notes


def _rows(right: pd.DataFrame, left: pd.DataFrame, keys: list[str]) -> np.ndarray:
    """The row of `right`, whose keys are unique, for each row of `left`; -1 where none."""
    if len(keys) == 1:
        return pd.Index(right[keys[0]]).get_indexer(pd.Index(left[keys[0]]))
    # Only the plates at hand: an index of 700,000 wells costs more than the join.
    at = np.flatnonzero(right[PLATE].isin(set(left[PLATE])))
    index = pd.MultiIndex.from_frame(right.iloc[at][keys])
    found = index.get_indexer(pd.MultiIndex.from_frame(left[keys]))
    return np.where(found < 0, -1, at[found] if len(at) else -1)


def _distinct(table: pd.DataFrame, columns: list[str]) -> list[list[str]]:
    return table[columns].drop_duplicates().to_numpy().tolist()


def check_target2(manifest: pd.DataFrame) -> tuple[str, ...]:
    """What differs from 384 wells and 64 DMSO on Target-2 plates: known of sources 2, 6, 9; told.

    Args:
        manifest: What `join_tables` gave.
    """
    part = manifest[manifest["Metadata_PlateType"] == "TARGET2"]
    wells = part[[SOURCE, PLATE, WELL, JCP]].drop_duplicates()
    counts = (
        wells.assign(dmso=wells[JCP] == DMSO, known=wells[JCP] != "")
        .groupby([SOURCE, PLATE])
        .agg(num=(WELL, "nunique"), dmso=("dmso", "sum"), known=("known", "any"))
    )
    odd = counts[
        (counts["num"] != TARGET2_WELLS) | (counts["known"] & (counts["dmso"] != TARGET2_DMSO))
    ]
    if not len(odd):
        return ()
    names = [
        f"{'/'.join(map(str, name))} ({row.num}, {row.dmso})"
        for name, row in zip(odd.index, odd.itertuples(), strict=True)
    ]
    return (
        f"{len(odd)} of {len(counts)} Target-2 plates have not {TARGET2_WELLS} wells with "
        f"{TARGET2_DMSO} of DMSO (wells, DMSO): {some(names)}",
    )


def target_platemap(platemap: Path, compounds: Path) -> pd.DataFrame:
    """A JUMP-Target plate map with its compounds: one row a well.

    Two traps: the table of compounds lists some ids twice, which would multiply wells, and it
    writes DMSO as `NA`, where the map leaves the well empty.

    Args:
        platemap: `JUMP-Target-2_compound_platemap.tsv` or its siblings.
        compounds: `JUMP-Target-2_compound_metadata.tsv` or its siblings.

    Returns:
        Metadata_Well, Metadata_broad_sample (DMSO for the solvent), Metadata_InChIKey,
        Metadata_pert_iname, Metadata_ControlType, and the table's own control_type.

    Raises:
        InputError: A column is missing, an id of the map is not in the table, or two rows of one id
            differ.
    """
    wells, table = read_table(platemap), read_table(compounds)
    wanted = ["broad_sample", "InChIKey", "pert_iname", "control_type"]
    for path, part, columns in (
        (platemap, wells, ["well_position", "broad_sample"]), (compounds, table, wanted)
    ):  # fmt: skip
        if lost := [column for column in columns if column not in part]:
            raise InputError(f"{path} lacks {', '.join(lost)}", fix="use the table of JUMP-Target")
    table = table[wanted].drop_duplicates()
    if len(twice := table[table["broad_sample"].duplicated()]):
        raise InputError(
            f"{compounds}: rows of {some(twice['broad_sample'].tolist())} differ", fix="keep one"
        )
    table = table.replace({"broad_sample": {"NA": ""}}).set_index("broad_sample")
    if unknown := sorted(set(wells["broad_sample"]) - set(table.index)):
        raise InputError(f"{compounds} lacks {some(unknown)}", fix="use the tables of one release")
    found = table.loc[wells["broad_sample"]].reset_index()
    return pd.DataFrame(
        {
            WELL: normal_wells(wells["well_position"]),
            "Metadata_broad_sample": found["broad_sample"].replace("", "DMSO"),
            INCHIKEY: found["InChIKey"].replace("NA", ""),
            "Metadata_pert_iname": found["pert_iname"],
            "Metadata_ControlType": [map_control(word) for word in found["control_type"]],
            "Metadata_control_type": found["control_type"].replace("NA", ""),
        }
    )
