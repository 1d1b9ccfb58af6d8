"""Profiles as AnnData, in the two layouts that other packages read.

`mantispy` (schema 2.0, of its release 0.1) keeps the prefix `Metadata_` in `obs`, wants eleven
columns in `var` and its stamp in `uns`; `cell-painting-io` strips the prefix and names the index of
`var`. One file cannot be both: the first wants a var column `feature`, the second an index of that
name, and AnnData does not write the pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from evenfield.data.names import as_text
from evenfield.data.roles import some
from evenfield.errors import InputError
from evenfield.types import Profiles

if TYPE_CHECKING:
    from anndata import AnnData

Layout = Literal["mantispy", "cell-painting-io"]
PREFIX = "Metadata_"
_KEY = ("Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_Object")
_MANTISPY = {
    "Metadata_Perturbation": "Metadata_Treatment",
    "Metadata_CellLine": "Metadata_CellType",
}
_WORDS = ("object", "feature_group", "feature", "channel", "radial_bin", "params")
_COMPARTMENTS = ("Cells_", "Cytoplasm_", "Nuclei_", "Image_")
_NUMBERS = ("scale", "angle", "gray_levels")


def to_anndata(
    profiles: Profiles, *, layout: Layout = "mantispy", mechanism: str | None = None
) -> AnnData:
    """Profiles as AnnData; features become float32, nothing else of them changes.

    Rows are named plate:well, with site and object behind where rows are sites or cells; those of
    treatments by their treatment. Where two sources have a plate of one name, the source stands in
    front. In the layout `mantispy` its columns stand beside ours: `Metadata_Perturbation`,
    `Metadata_Control_Type` (negcon, poscon, treatment, empty), `Metadata_Control` (true for all but
    treatments), `Metadata_CellLine` and, if a column of mechanisms is named, `Metadata_MOA`.

    Args:
        profiles: Cells, sites, wells or treatments.
        layout: `mantispy` or `cell-painting-io`.
        mechanism: The metadata column that tells mechanisms of action; only for `mantispy`.

    Raises:
        InputError: Two rows have one name, rows have none, or there is no such column.
    """
    import anndata

    told = pd.DataFrame(
        {str(column): _plain(profiles.metadata[column]) for column in profiles.metadata}
    )
    resolution = resolution_of(profiles)
    names = row_names(profiles, resolution)
    x = profiles.features.astype(np.float32)
    if layout == "cell-painting-io":
        told.columns = [column.removeprefix(PREFIX) for column in told.columns]
        _refuse_case_twins(told)
        for column in told.columns:
            if told[column].dtype == object:
                told[column] = told[column].astype("string")
        told.index = pd.Index(names, name="well")
        return anndata.AnnData(X=x, obs=told, var=_var_of_cell_painting_io(profiles.names))
    for theirs, ours in _MANTISPY.items():
        if ours in told and theirs not in told:
            told[theirs] = told[ours]
    if "Metadata_ControlType" in told:
        told["Metadata_Control_Type"] = told["Metadata_ControlType"].replace({"trt": "treatment"})
        told["Metadata_Control"] = (told["Metadata_Control_Type"] != "treatment").astype(bool)
    if mechanism is not None:
        if mechanism not in told:
            raise InputError(
                f"the profiles have no column {mechanism} of mechanisms",
                fix=f"name one of: {some(list(profiles.metadata.columns), 12)}",
            )
        told["Metadata_MOA"] = told[mechanism]
    told.index = pd.Index(names, name="treatment" if resolution == "perturbation" else "well")
    stamp: dict[str, Any] = {"schema_version": "2.0", **_resolution(told, resolution)}
    if "Metadata_Perturbation" in told:
        stamp["perturbation"] = {"column": "Metadata_Perturbation"}
    return anndata.AnnData(
        X=x, obs=told, var=_var_of_mantispy(profiles.names), uns={"mantispy": stamp}
    )


def _resolution(told: pd.DataFrame, resolution: str) -> dict[str, Any]:
    """Resolution and grouping in mantispy's words; cells get the columns that name them there.

    It knows no sites: they are an aggregate by plate, well and site.
    """
    if resolution == "cell":
        place = [column for column in ("Metadata_Source", *_KEY[:3]) if column in told]
        told["Metadata_ImageID"] = told[place].astype(str).agg(":".join, axis=1)
        told["Metadata_ObjectType"] = "Cells"
        told["Metadata_ObjectNumber"] = told["Metadata_Object"]
        return {"resolution": "object", "grouped_by": []}
    if resolution == "perturbation":
        names = [c for c in ("Metadata_Perturbation", "Metadata_Compound") if c in told]
        return {"resolution": "aggregate", "grouped_by": names[:1]}
    if resolution == "site":
        return {"resolution": "aggregate", "grouped_by": list(_KEY[:3])}
    return {"resolution": "well", "grouped_by": list(_KEY[:2])}


def resolution_of(profiles: Profiles) -> Literal["cell", "site", "well", "perturbation"]:
    """What a row is, told by the columns and their repeats."""
    metadata = profiles.metadata
    if not {"Metadata_Plate", "Metadata_Well"} <= set(metadata.columns):
        return "perturbation"
    for column, word in (("Metadata_Object", "cell"), ("Metadata_Site", "site")):
        well = [c for c in ("Metadata_Source", *_KEY) if c in metadata and c != column]
        if column in metadata and metadata.duplicated(well[: _place(well, column)]).any():
            return "cell" if word == "cell" else "site"
    return "well"


def _place(columns: list[str], column: str) -> int:
    """How many of the key's columns stand above one."""
    above = ("Metadata_Source", *_KEY)[: 1 + _KEY.index(column)]
    return sum(c in above for c in columns)


def row_names(profiles: Profiles, resolution: str) -> list[str]:
    """One name a row, unique.

    Raises:
        InputError: Rows have neither plate and well nor a treatment, or two have one name.
    """
    metadata = profiles.metadata
    if resolution == "perturbation":
        found = [c for c in ("Metadata_Treatment", "Metadata_Compound") if c in metadata]
        if not found:
            raise InputError(
                "the profiles name neither plate and well nor a treatment",
                fix="add Metadata_Plate and Metadata_Well, or Metadata_Treatment",
            )
        key = found[:1]
    else:
        depth = {"well": 2, "site": 3, "cell": 4}[resolution]
        key = [column for column in _KEY[:depth] if column in metadata]
    source = "Metadata_Source"
    if source in metadata and metadata.duplicated(key).any():
        key = [source, *key]
    words = [as_text(metadata[column]) for column in key]
    names = [":".join(parts) for parts in zip(*words, strict=True)]
    repeated = sorted(pd.Index(names)[pd.Index(names).duplicated()].unique())
    if repeated:
        raise InputError(
            f"{len(repeated)} name(s) of rows are not unique: {some(repeated, 4)}",
            fix="leave the copies out, or add the column that tells them apart (Metadata_Site, "
            "Metadata_Object)",
        )
    return names


def _plain(values: pd.Series) -> pd.Series:
    """One type a column, of those that the file format has: words, booleans or numbers."""
    values = values.reset_index(drop=True)
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    if values.dtype.kind in "biuf" and not pd.api.types.is_extension_array_dtype(values.dtype):
        return values
    known = values.dropna()
    if len(known) and all(isinstance(value, bool | np.bool_) for value in known):
        return values.astype(bool) if len(known) == len(values) else _words(values)
    if pd.api.types.is_numeric_dtype(values.dtype):
        return values.astype(float)
    return _words(values)


def _words(values: pd.Series) -> pd.Series:
    return pd.Series(as_text(values), index=values.index, dtype=object)


def _refuse_case_twins(told: pd.DataFrame) -> None:
    twins = told.columns[told.columns.duplicated()]
    if len(twins):
        raise InputError(
            f"without the prefix two columns are called {twins[0]}", fix="rename one of them"
        )


def _empty_words(num: int) -> pd.Categorical:
    return pd.Categorical([None] * num, categories=np.array([], dtype=object))


def _var_of_mantispy(names: tuple[str, ...]) -> pd.DataFrame:
    """Its eleven columns, empty rather than guessed: a learned feature has no channel or scale."""
    var = pd.DataFrame(index=pd.Index(names))
    for column in _WORDS:
        var[column] = _empty_words(len(names))
    for column in _NUMBERS:
        var[column] = np.full(len(names), np.nan)
    var["is_feature"] = True
    measured = [name.startswith(_COMPARTMENTS) for name in names]
    kind = np.where(measured, "measurement", "embedding")
    var["feature_kind"] = pd.Categorical(kind)
    return var


def _var_of_cell_painting_io(names: tuple[str, ...]) -> pd.DataFrame:
    var = pd.DataFrame(index=pd.Index(names, name="feature"))
    for column in ("compartment", "family", "channel", "channel_2"):
        var[column] = _empty_words(len(names))
    var["n_channels"] = np.zeros(len(names), dtype=np.int8)
    return var
