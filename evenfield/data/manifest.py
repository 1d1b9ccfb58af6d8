"""The table of a screen: one row per image, columns named as the field names them.

`prepare_manifest` brings a table into the house's form and refuses only what it cannot read at
all; `check_manifest` then tells all that is wrong or doubtful at once, each with its rows.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from evenfield.data.checks import check_manifest
from evenfield.data.names import NEGCON, as_text, control_types, is_well, normalise_well
from evenfield.data.roles import KEY, Finding, Roles, require
from evenfield.errors import InputError

__all__ = [
    "KEY",
    "Finding",
    "Roles",
    "check_manifest",
    "normalise_well",
    "prepare_manifest",
    "require",
]

_DEFAULTS = {
    "Metadata_Source": "1",
    "Metadata_Site": "1",
    "Metadata_Object": "0",
    "Metadata_Compound": "",
    "Metadata_Label": "",
    "Metadata_CellType": "",
}
_TEXT = (*KEY, "Metadata_Batch", "Metadata_Compound", "Metadata_Treatment", "Metadata_Label")


def prepare_manifest(table: pd.DataFrame) -> pd.DataFrame:
    """A table in the house's form: nothing is dropped, nothing is reordered.

    Identifiers become strings; wells are normalised (the original stays in
    `Metadata_WellOriginal` where one differed; a name that does not parse stays as it is); missing
    optional columns get a default (every plate its own batch where there is no batch); control
    words of all known vocabularies become negcon, poscon, trt or empty; `Metadata_Label` of
    negative controls and empty wells becomes "" (no label). Other columns travel untouched.

    Args:
        table: One row per image, with at least `Metadata_Plate` and `Metadata_Well`.

    Raises:
        InputError: There is no row, a column name is repeated, or plate or well are missing.
    """
    if not len(table):
        raise InputError(
            "the table of images has no row", fix="give a table with one row per image"
        )
    repeated = sorted({str(name) for name in table.columns[table.columns.duplicated()]})
    if repeated:
        raise InputError(
            f"the table has more than one column called {', '.join(repeated)}",
            fix="rename or drop the repeated columns",
        )
    for column in ("Metadata_Plate", "Metadata_Well"):
        if column not in table:
            raise InputError(
                f"the table has no column {column} (it has {', '.join(map(str, table.columns))})",
                fix=f"rename the column that names the {column[9:].lower()} to {column}",
            )
    manifest = table.reset_index(drop=True).copy()
    for column, value in _DEFAULTS.items():
        if column not in manifest:
            manifest[column] = value
    if "Metadata_Batch" not in manifest:
        manifest["Metadata_Batch"] = manifest["Metadata_Plate"]
    controls = control_types(manifest)
    manifest["Metadata_ControlType"] = ["trt"] * len(manifest) if controls is None else controls
    if "Metadata_Concentration" in manifest:
        manifest["Metadata_Concentration"] = pd.to_numeric(
            manifest["Metadata_Concentration"], errors="coerce"
        ).astype(float)
    else:
        manifest["Metadata_Concentration"] = np.nan
    if "Metadata_Treatment" not in manifest:
        manifest["Metadata_Treatment"] = _treatments(manifest)
    for column in (*_TEXT, "Metadata_CellType"):
        manifest[column] = np.array(as_text(manifest[column]), dtype=object)
    for column in manifest.columns:
        # A file of columns gives each one type; numbers and words together become words.
        mixed = manifest[column].dtype == object
        if mixed and pd.api.types.infer_dtype(manifest[column], skipna=True).startswith("mixed"):
            manifest[column] = np.array(as_text(manifest[column]), dtype=object)
    wells = manifest["Metadata_Well"].tolist()
    names = {well: normalise_well(well) if is_well(well) else well for well in set(wells)}
    normal = [names[well] for well in wells]
    if normal != wells and "Metadata_WellOriginal" not in manifest:
        manifest["Metadata_WellOriginal"] = np.array(wells, dtype=object)
    manifest["Metadata_Well"] = np.array(normal, dtype=object)
    unlabelled = manifest["Metadata_ControlType"].isin([NEGCON, "empty"])
    manifest.loc[unlabelled, "Metadata_Label"] = ""
    return manifest


def _treatments(manifest: pd.DataFrame) -> list[str]:
    """Compound and dose in micromolar, as `taxol@0.3`; a compound without a dose is itself."""
    doses = manifest["Metadata_Concentration"].tolist()
    compounds = as_text(manifest["Metadata_Compound"])
    return [
        f"{compound}@{dose:g}" if compound and dose == dose and dose > 0 else compound
        for compound, dose in zip(compounds, doses, strict=True)
    ]
