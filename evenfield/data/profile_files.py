"""The kinds of files that profiles come in, each as one wide table with `Metadata_` columns."""

from __future__ import annotations

import warnings
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evenfield.data.roles import some
from evenfield.errors import InputError

PREFIX = "Metadata_"
_OTHER_PREFIXES = ("Image_Metadata_", "metadata_", "meta_")  # the longest match is stripped
_WORDS = {
    word.lower(): word
    for word in (
        *("Source", "Batch", "Plate", "Well", "Site", "Object", "Compound", "Concentration"),
        *("Treatment", "Label", "ControlType", "CellType", "CellCount"),
    )
}
_NOT_KNOWN = ["", "NaN", "nan", "NA", "N/A", "n/a", "<NA>", "null", "NULL", "None", "#N/A", "-nan"]
_UNREADABLE = (ValueError, KeyError, IndexError, zipfile.BadZipFile, UnicodeDecodeError)


def read_table(path: Path) -> pd.DataFrame:
    """One file or folder as a wide table; metadata of CSV are words, not yet numbers.

    Raises:
        InputError: It does not exist, its kind is not known, or it cannot be read.
    """
    name = path.name.lower()
    if not path.exists():
        raise InputError(f"there is no {path}", fix="give an existing file or folder")
    try:
        if name.endswith(".parquet"):
            table = pd.read_parquet(path)
            named = [index for index in table.index.names if index is not None]
            table = table.reset_index(drop=not named)
        elif name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt")):
            table = _delimited(path, "," if ".csv" in name else "\t")
        elif name.endswith((".h5ad", ".zarr")):
            table = _anndata(path)
        elif path.is_dir():
            table = _deep_profiler(path)
        else:
            raise InputError(
                f"{path} is of no kind that is known",
                fix="give .parquet, .csv, .csv.gz, .tsv, .h5ad, .zarr, or a folder of .npz files",
            )
    except (OSError, *_UNREADABLE) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {path}: {error}", fix="give a whole table") from error
    return table


def house_name(name: str) -> str:
    """The name of a metadata column in the house's spelling; other names stay.

    >>> [house_name(n) for n in ("Image_Metadata_Well", "metadata_plate", "meta_smiles", "Cells_1")]
    ['Metadata_Well', 'Metadata_Plate', 'Metadata_smiles', 'Cells_1']
    """
    for prefix in (*_OTHER_PREFIXES, PREFIX):
        if name.startswith(prefix):
            word = name.removeprefix(prefix)
            return PREFIX + _WORDS.get(word.lower(), word)
    return name


def is_metadata(name: str) -> bool:
    """Whether a column is metadata: it starts with `Metadata_` or another spelling of it."""
    return house_name(name).startswith(PREFIX)


def _delimited(path: Path, separator: str) -> pd.DataFrame:
    """A text file; identifiers such as 007 and 1e5 stay as they are written."""
    columns = [str(column) for column in pd.read_csv(path, sep=separator, nrows=0).columns]
    told = {column: str for column in columns if is_metadata(column)}
    unknown = {column: _NOT_KNOWN for column in columns if column not in told}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # text is refused by name later
        return pd.read_csv(
            path,
            sep=separator,
            dtype=told,
            na_values=unknown,
            keep_default_na=False,
            float_precision="round_trip",  # the default is off by the last bit
        )


def _anndata(path: Path) -> pd.DataFrame:
    """AnnData whose `obs` keeps the prefix (mantispy) or strips it (cell-painting-io)."""
    try:
        anndata = import_module("anndata")
    except ImportError as error:
        raise InputError(
            f"{path.name} is AnnData, and the package anndata is not installed",
            fix="pip install anndata, or give the profiles as Parquet",
        ) from error
    read = anndata.read_zarr if path.is_dir() else anndata.read_h5ad
    return table_of(read(path), path.name)


def table_of(data: Any, name: str) -> pd.DataFrame:
    """AnnData as one wide table; what `var` says is no feature becomes metadata.

    Raises:
        InputError: `obs` names neither plate and well nor a treatment.
    """
    obs = data.obs.reset_index(drop=True)
    obs.columns = [house_name(c if is_metadata(c) else PREFIX + c) for c in map(str, obs.columns)]
    wells = {PREFIX + "Plate", PREFIX + "Well"} <= set(obs.columns)
    treatments = [PREFIX + word for word in ("Treatment", "Perturbation", "Compound")]
    if not wells and not any(name in obs for name in treatments):
        raise InputError(
            f"{name} names neither plate and well nor a treatment; its obs has "
            f"{some(list(obs.columns), 8) or 'no column'}",
            fix="add the obs columns Metadata_Plate and Metadata_Well (or Plate and Well)",
        )
    for column in obs.columns:
        if isinstance(obs[column].dtype, pd.CategoricalDtype):
            obs[column] = obs[column].astype(obs[column].cat.categories.dtype)
    x: Any = data.X
    x = np.asarray(x.toarray() if hasattr(x, "toarray") else x)
    features = pd.DataFrame(x, columns=data.var_names.astype(str))
    if "is_feature" in data.var:
        other = features.columns[~data.var["is_feature"].to_numpy(dtype=bool)]
        features = features.rename(columns={name: PREFIX + name for name in other})
    return pd.concat([obs, features], axis=1)


def _deep_profiler(folder: Path) -> pd.DataFrame:
    """`[batch/]plate/well/site.npz`, or `[batch/]plate/well/site/embedding.npz`: a row a cell.

    Only the array `features` is read: `metadata` is a pickle.
    """
    files = sorted(folder.rglob("*.npz"))
    if not files:
        raise InputError(
            f"{folder} holds no .npz file",
            fix="give the folder that has the plates of DeepProfiler",
        )
    tables = []
    for path in files:
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] == "embedding":
            parts = parts[:-1]
        if len(parts) < 3:
            raise InputError(
                f"{path.relative_to(folder)} does not lie in plate/well/site.npz",
                fix="give the folder above the plates",
            )
        with np.load(path, allow_pickle=False) as file:
            x = np.atleast_2d(file["features"])
        told = dict(zip(("Plate", "Well", "Site"), parts[-3:], strict=True))
        if len(parts) > 3:
            told["Batch"] = parts[-4]
        table = pd.DataFrame({PREFIX + word: [value] * len(x) for word, value in told.items()})
        table[PREFIX + "Object"] = [str(i) for i in range(len(x))]
        features = pd.DataFrame(x, columns=[f"DeepProfiler_{i}" for i in range(x.shape[1])])
        tables.append(pd.concat([table, features], axis=1))
    if len({table.shape[1] for table in tables}) > 1:
        raise InputError(
            f"the .npz files in {folder} have different numbers of features",
            fix="give the features of one network only",
        )
    return pd.concat(tables, ignore_index=True)
