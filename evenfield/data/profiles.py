"""Tables of profiles: read from what the field writes, checked and named as the house names them.

Column names follow pycytominer, JUMP-CP, mantispy and cell-painting-io; the files are Parquet, CSV,
AnnData (`.h5ad`, `.zarr`) and DeepProfiler's folders of `.npz`.
"""

from __future__ import annotations

import gzip
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from evenfield.data.names import as_text, control_types, has_controls, is_well, normalise_well
from evenfield.data.profile_files import PREFIX, house_name, read_table, table_of
from evenfield.data.roles import KEY, some
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.files import whole
from evenfield.types import Profiles

if TYPE_CHECKING:
    from anndata import AnnData

_IDENTIFIERS = frozenset(
    {
        *KEY,
        *("Metadata_Batch", "Metadata_Compound", "Metadata_Treatment", "Metadata_Label"),
        *("Metadata_CellType", "Metadata_CellLine", "Metadata_ControlType"),
    }
)
_POSITION = re.compile(
    r"(^|_)(Location|AreaShape_Center|AreaShape_BoundingBox\w*|Number_Object_Number|Parent"
    r"|Neighbors_(First|Second)ClosestObjectNumber)(_|$)|^(Image|Object|Table)Number$"
    r"|^Unnamed: \d+$"  # the row numbers that pandas writes
)


def read_profiles(
    path: Path | str | Sequence[Path | str],
    *,
    missing: Literal["error", "keep"] = "error",
    repeated: Literal["error", "keep"] = "error",
    positions: Literal["leave", "keep"] = "leave",
) -> Profiles:
    """Profiles from one file or folder, or from several that are put one below the other.

    Columns are metadata if they start with `Metadata_` (or with one of its other spellings, which
    becomes it); all others must be numbers and are features. Plates and other identifiers become
    strings, wells `A01` (the original stays in `Metadata_WellOriginal` where one differed); where a
    known vocabulary tells controls, `Metadata_ControlType` says negcon, poscon, trt or empty.
    Several tables are joined by the names of their features; those that are not in all of them are
    left out with a warning.

    Args:
        path: `.parquet`, `.csv`, `.csv.gz`, `.tsv`, `.h5ad`, a `.zarr` folder, or a folder
            plate/well/site.npz of DeepProfiler.
        missing: Whether NaN and infinite values are an error or are kept.
        repeated: Whether two rows of one source, plate, well, site and object are an error.
        positions: Whether features that tell positions, bounding boxes and numbers of objects are
            left out of the features, with a warning (they stay as metadata), or kept.

    Raises:
        InputError: A file cannot be read or is no such table; no row or no feature; text among the
            features; NaN; repeated wells; a well that does not parse.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(item) for item in path]
    if not paths:
        raise InputError("no table of profiles is given", fix="give at least one file")
    where = str(paths[0]) if len(paths) == 1 else f"{len(paths)} tables ({paths[0].name}, ...)"
    return _accepted(
        [_parted(read_table(each), each, positions) for each in paths],
        where,
        missing=missing,
        repeated=repeated,
    )


def from_anndata(
    data: AnnData,
    *,
    missing: Literal["error", "keep"] = "error",
    repeated: Literal["error", "keep"] = "error",
    positions: Literal["leave", "keep"] = "leave",
) -> Profiles:
    """Profiles from AnnData in memory, whose `obs` has the prefix `Metadata_` or strips it.

    Args:
        data: Features in `X`; columns that `var["is_feature"]` denies become metadata.
        missing: See `read_profiles`.
        repeated: See `read_profiles`.
        positions: See `read_profiles`.

    Raises:
        InputError: `obs` names neither plate and well nor a treatment; and as `read_profiles`.
    """
    where = "the AnnData"
    parts = [_parted(table_of(data, where), Path(where), positions)]
    return _accepted(parts, where, missing=missing, repeated=repeated)


def _accepted(
    parts: list[tuple[pd.DataFrame, pd.DataFrame, list[str]]],
    where: str,
    *,
    missing: str,
    repeated: str,
) -> Profiles:
    """Tables in the house's form as one, if it holds what it may hold."""
    _tell_positions(parts[0][2], where)
    profiles = _stacked(parts, where)
    if missing == "error":
        _refuse_missing(profiles, where)
    if repeated == "error":
        _refuse_repeated(profiles.metadata, where)
    return profiles


def write_profiles(profiles: Profiles, path: Path | str) -> None:
    """Write a wide table, metadata first, features as float32, whole or not at all.

    Args:
        profiles: Any.
        path: `.parquet` or `.csv.gz`.

    Raises:
        InputError: The name ends otherwise, or metadata columns do not start with `Metadata_`.
        StorageError: The disk is full or read-only.
    """
    path = Path(path)
    foreign = [str(c) for c in profiles.metadata.columns if not str(c).startswith(PREFIX)]
    if foreign:
        raise InputError(
            f"{len(foreign)} metadata column(s) do not start with {PREFIX}: {some(foreign, 4)}",
            fix=f"rename them to {PREFIX}...: readers would take them for features",
        )
    features = pd.DataFrame(
        np.asarray(profiles.features, dtype=np.float32), columns=list(profiles.names)
    )
    metadata = profiles.metadata.reset_index(drop=True).copy()
    for column in metadata.columns:
        metadata[column] = _one_type(metadata[column])
    table = pd.concat([metadata, features], axis=1)
    if path.name.endswith(".parquet"):
        with whole(path) as file:
            table.to_parquet(file, index=False)
    elif path.name.endswith(".csv.gz"):
        # Level 1 and no clock: digits hardly compress, and equal tables give equal bytes.
        with (
            whole(path) as file,
            gzip.GzipFile(fileobj=file, mode="wb", mtime=0, compresslevel=1) as packed,
        ):
            packed.write(table.to_csv(index=False).encode())
    else:
        raise InputError(f"{path.name} is no kind of table", fix="write .parquet or .csv.gz")


def is_position(name: str) -> bool:
    """Whether a CellProfiler feature tells where an object is, or its number, not what it is like.

    >>> [is_position(n) for n in ("Cells_Location_Center_X", "Nuclei_AreaShape_Center_Y")]
    [True, True]
    >>> [is_position(n) for n in ("Cells_AreaShape_Area", "Nuclei_Neighbors_NumberOfNeighbors_3")]
    [False, False]
    """
    return _POSITION.search(name) is not None


def _parted(
    table: pd.DataFrame, path: Path, positions: str
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Metadata in the house's form, features, and which features became metadata."""
    table.columns = [house_name(str(column)) for column in table.columns]
    table = _without_repeats(table, path)
    told = [c for c in table.columns if c.startswith(PREFIX)]
    features = table.drop(columns=told)
    text = [c for c in features.columns if features[c].dtype.kind not in "iuf"]
    if text:
        values = features[text[0]].dropna()
        raise InputError(
            f"{path}: {len(text)} column(s) without {PREFIX} hold something else than numbers: "
            f"{some(text, 4)} (for example {values.iloc[0] if len(values) else None!r})",
            fix=f"name them {PREFIX}... if they describe rows, or leave them out",
        )
    metadata = table[told].copy()
    moved = [c for c in features.columns if is_position(c)] if positions == "leave" else []
    for name in moved:
        metadata[PREFIX + name] = features.pop(name)
    if not len(table) or not features.shape[1]:
        raise InputError(
            f"{path} has {len(table)} rows and {features.shape[1]} features",
            fix=f"give a table with rows, and columns of numbers that do not start with {PREFIX}",
        )
    return _housed(metadata, path), features, moved


def _without_repeats(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Columns that have one name in the house's spelling are one column, if they say the same."""
    repeated = sorted(set(table.columns[table.columns.duplicated()]))
    for name in repeated:
        same = table.loc[:, table.columns == name]
        if not all(same.iloc[:, 0].equals(same.iloc[:, i]) for i in range(1, same.shape[1])):
            raise InputError(
                f"{path} has {same.shape[1]} different columns that read as {name}",
                fix="rename or leave out all but one of them",
            )
    return table.loc[:, ~table.columns.duplicated()]


def _housed(metadata: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Identifiers as strings, numbers as numbers, wells as A01, controls in four words."""
    for column in metadata.columns:
        values = metadata[column]
        metadata[column] = _texts(values) if column in _IDENTIFIERS else _one_type(_number(values))
    if "Metadata_Well" in metadata:
        wells = metadata["Metadata_Well"]
        names = {well: well for well in wells.unique()}
        bad = [well for well in names if not is_well(well)]
        if bad:
            raise InputError(
                f"{path}: {len(bad)} name(s) in Metadata_Well are no wells: {some(bad, 4)}",
                fix="name wells by row letter and column number, from A01 to AF48",
            )
        normal = wells.map({well: normalise_well(well) for well in names})
        if "Metadata_WellOriginal" not in metadata and (normal != wells).any():
            metadata["Metadata_WellOriginal"] = wells
        metadata["Metadata_Well"] = normal
    if has_controls(metadata):
        metadata["Metadata_ControlType"] = control_types(metadata)
    return metadata


def _texts(values: pd.Series) -> pd.Series:
    codes, unique = pd.factorize(values, use_na_sentinel=False)
    texts = np.array(as_text(unique), dtype=object)
    return pd.Series(texts[codes], index=values.index, dtype=object)


def _number(values: pd.Series) -> pd.Series:
    """Words as numbers, if all of them are and would be written so (007 and 1e5 stay words)."""
    if values.dtype != object:
        return values
    words = _texts(values)
    known = words[words != ""]
    if not len(known) or not known.str.fullmatch(_NUMBER).all():
        return values
    return pd.to_numeric(words, errors="coerce")


def _one_type(values: pd.Series) -> pd.Series:
    """Words where numbers and words are mixed: a file of columns gives each one type."""
    if values.dtype == object:
        kind = pd.api.types.infer_dtype(values, skipna=True)
        if kind.startswith("mixed"):
            return _texts(values)
    return values


_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")


def _stacked(parts: list[tuple[pd.DataFrame, pd.DataFrame, list[str]]], where: str) -> Profiles:
    """Tables one below the other, features joined by name."""
    tables = [features for _, features, _ in parts]
    names = tables[0].columns
    shared = names[[all(name in table.columns for table in tables) for name in names]]
    lost = len(set().union(*(set(table.columns) for table in tables))) - len(shared)
    if not len(shared):
        raise InputError(f"the {where} have no feature in common", fix="read them one by one")
    if lost:
        warnings.warn(
            f"{where}: {lost} feature(s) are not in all of them and are left out; {len(shared)} "
            "stay",
            EvenfieldWarning,
            stacklevel=4,
        )
    kinds = {dtype for table in tables for dtype in table[shared].dtypes}
    narrow = all(dtype.kind == "f" and dtype.itemsize <= 4 for dtype in kinds)
    dtype = np.float32 if narrow else np.float64
    x = np.concatenate([table[shared].to_numpy(dtype=dtype, na_value=np.nan) for table in tables])
    metadata = pd.concat([told for told, *_ in parts], ignore_index=True)
    for column in metadata.columns:
        if column in _IDENTIFIERS and metadata[column].isna().any():
            metadata[column] = metadata[column].fillna("")
        metadata[column] = _one_type(metadata[column])
    return Profiles(features=x, names=tuple(shared), metadata=metadata)


def _tell_positions(moved: list[str], where: str) -> None:
    if moved:
        warnings.warn(
            f"{where}: {len(moved)} column(s) tell positions or numbers of objects, not what they "
            f"are like, and are metadata now ({some(moved, 3)}); positions='keep' keeps them",
            EvenfieldWarning,
            stacklevel=4,
        )


def _refuse_missing(profiles: Profiles, where: str) -> None:
    bad = ~np.isfinite(profiles.features)
    if bad.any():
        names = [profiles.names[i] for i in np.flatnonzero(bad.any(0))]
        raise InputError(
            f"{where}: {int(bad.any(1).sum())} row(s) hold NaN or infinite values in {len(names)} "
            f"feature(s): {some(names, 4)}",
            fix="read with missing='keep' and put `select-features` first, or mend the table",
        )


def _refuse_repeated(metadata: pd.DataFrame, where: str) -> None:
    if not {"Metadata_Plate", "Metadata_Well"} <= set(metadata.columns):
        return
    key = [column for column in KEY if column in metadata]
    again = metadata.duplicated(key)
    if again.any():
        first = metadata.loc[again, key].iloc[0]
        raise InputError(
            f"{where}: {int(again.sum())} row(s) repeat the {', '.join(c[9:] for c in key)} of "
            f"another (first: {', '.join(map(str, first))})",
            fix="leave the copies out, add the column that tells them apart, or read with "
            "repeated='keep'",
        )
