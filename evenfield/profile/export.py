"""Profiles in the files that other software reads, each written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from evenfield.data.names import as_text
from evenfield.data.profiles import write_profiles
from evenfield.errors import InputError
from evenfield.files import storing
from evenfield.profile.anndata import PREFIX, Layout, resolution_of, to_anndata
from evenfield.types import Profiles

Format = Literal["parquet", "csv.gz", "h5ad", "zarr", "deepprofiler", "gallery"]
FEATURES = f"features=[c for c in profiles if not c.startswith({PREFIX!r})]"
"""What pycytominer's functions must be told about embeddings: by themselves they find none."""


def export_profiles(
    profiles: Profiles,
    out: Path,
    *,
    format: Format | None = None,
    layout: Layout = "mantispy",
    mechanism: str | None = None,
    identifier: str | None = None,
) -> str:
    """Write profiles for other software.

    `parquet`, `csv.gz`: one wide table, metadata first. `h5ad`, `zarr`: AnnData (`to_anndata`).
    `deepprofiler`: plate/well/site.npz with the array `features`, a row a cell, as DeepProfiler's
    `features` folder and pycytominer's reader have it; under the batch, where plates of several
    batches share a name. `gallery`: the Cell Painting Gallery's
    `workspace_dl/embeddings/IDENTIFIER/BATCH/PLATE/WELL-SITE/embedding.parquet`, or for wells
    `workspace_dl/profiles/IDENTIFIER/BATCH/PLATE/PLATE.parquet`.

    Args:
        profiles: Cells, sites, wells or treatments.
        out: A file or, for the last three formats, a folder; it must not exist yet.
        format: None = what the name's end says.
        layout: Of AnnData.
        mechanism: A column of mechanisms for `Metadata_MOA` (AnnData of mantispy).
        identifier: The gallery's NETWORK_DATASET_HASH of the model.

    Returns:
        How other software is told what it cannot guess, in a line or two.

    Raises:
        InputError: `out` exists, the name's end says no format, or a column that the format needs
            is missing.
        StorageError: The disk is full or read-only.
    """
    kind = format or _format_of(out)
    if out.exists():
        raise InputError(f"the output {out} exists", fix="choose another one or delete this one")
    if kind in ("parquet", "csv.gz"):
        if not out.name.endswith(f".{kind}"):
            raise InputError(f"{out.name} is to be {kind}", fix=f"end the name in .{kind}")
        write_profiles(profiles, out)
    elif kind in ("h5ad", "zarr"):
        data = to_anndata(profiles, layout=layout, mechanism=mechanism)
        write = data.write_h5ad if kind == "h5ad" else data.write_zarr
        _whole_tree(out, lambda path: write(path))
    elif kind == "deepprofiler":
        _require(profiles, ("Plate", "Well", "Site"), kind)
        _whole_tree(out, lambda path: _deep_profiler(profiles, path))
    else:
        _require(profiles, ("Batch", "Plate", "Well"), kind)
        if not identifier:
            raise InputError(
                "the gallery's folders carry the name of the model, and none is known",
                fix="give --identifier NETWORK_DATASET_HASH",
            )
        _whole_tree(out, lambda path: _gallery(profiles, path, _safe(identifier)))
    return _hint(kind, layout)


def _format_of(out: Path) -> Format:
    kinds: tuple[Format, ...] = ("parquet", "csv.gz", "h5ad", "zarr")
    for kind in kinds:
        if out.name.endswith(f".{kind}"):
            return kind
    raise InputError(
        f"the name {out.name} says no format",
        fix="end it in .parquet, .csv.gz, .h5ad or .zarr, or give --format",
    )


def _hint(kind: Format, layout: Layout) -> str:
    if kind in ("parquet", "csv.gz"):
        also = "\nmantispy: read_profiles(..., objects=None)" if kind == "parquet" else ""
        return f"pycytominer: {FEATURES}{also}"
    if kind in ("h5ad", "zarr"):
        return f"AnnData in the layout of {layout}"
    if kind == "deepprofiler":
        return 'pycytominer: DeepProfilerData(index, folder, filename_delimiter="/")'
    return "upload the folder below the data set's and source's own"


def _whole_tree(out: Path, write: Callable[[Path], object]) -> None:
    """Let something write a file or a folder under a temporary name, then give it its own.

    Raises:
        StorageError: The disk is full or read-only; nothing is left behind.
    """
    # The kind stays at the end of the name: writers of AnnData look at it.
    partial = out.with_name(f"partial.{out.name}")
    with storing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        try:
            write(partial)
            partial.rename(out)
        finally:
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _require(profiles: Profiles, words: tuple[str, ...], kind: str) -> None:
    lacking = [PREFIX + word for word in words if PREFIX + word not in profiles.metadata]
    if lacking:
        raise InputError(
            f"the profiles have no column {', '.join(lacking)}, which names folders of {kind}",
            fix="add it, or choose another format",
        )


def _folders(profiles: Profiles, words: tuple[str, ...]) -> pd.Series:
    """The folder of each row, of the safe texts of some columns."""
    texts = [[_safe(t) for t in as_text(profiles.metadata[PREFIX + word])] for word in words]
    return pd.Series(["/".join(parts) for parts in zip(*texts, strict=True)])


def _safe(text: str) -> str:
    """A name as one part of a path.

    Raises:
        InputError: It is empty, a dot, or holds a slash.
    """
    if text in ("", ".", "..") or set(text) & set("/\\\0"):
        raise InputError(f"{text!r} cannot name a folder", fix="rename it, without slashes")
    return text


def _deep_profiler(profiles: Profiles, root: Path) -> None:
    words: tuple[str, ...] = ("Plate", "Well", "Site")
    metadata = profiles.metadata
    if "Metadata_Batch" in metadata:
        batches = metadata.groupby("Metadata_Plate")["Metadata_Batch"].nunique()
        words = ("Batch", *words) if (batches > 1).any() else words
    place = _folders(profiles, words)
    for name, rows in place.groupby(place).indices.items():
        path = root / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, features=profiles.features[rows].astype(np.float32))


def _gallery(profiles: Profiles, root: Path, identifier: str) -> None:
    level = resolution_of(profiles)
    if level == "perturbation":
        raise InputError("treatments lie in no plate", fix="give wells, sites or cells")
    below = level in ("site", "cell")
    kind = "embeddings" if below else "profiles"
    plates = _folders(profiles, ("Batch", "Plate"))
    if below:
        _require(profiles, ("Site",), "embeddings")
        wells, sites = _folders(profiles, ("Well",)), _folders(profiles, ("Site",))
        place = plates + "/" + wells + "-" + sites + "/embedding.parquet"
    else:
        place = plates + "/" + _folders(profiles, ("Plate",)) + ".parquet"
    for name, rows in place.groupby(place).indices.items():
        write_profiles(profiles[rows], root / "workspace_dl" / kind / identifier / str(name))
