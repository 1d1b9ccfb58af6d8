"""DeepProfiler's features of cells, one .npz a site: `PLATE/WELL/SITE.npz`, in and out.

Whole folders become profiles with `evenfield.data.profiles.read_profiles`, which reads the numbers
only. The array `metadata` of these files is a pickle, which may run any code when it is loaded. It
is read on request only, and then by an unpickler that knows numbers, texts, lists and dictionaries
and refuses everything else.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import Unpickler, UnpicklingError
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from evenfield.data.names import as_text
from evenfield.data.roles import some
from evenfield.errors import InputError
from evenfield.files import whole
from evenfield.types import Profiles

_FAULTS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
_HARMLESS = {  # what an object array of plain values is made of, in old and new numpy
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core")
      for name in ("_reconstruct", "scalar")),
}  # fmt: skip
_LOCATIONS = ("Metadata_Location_X", "Metadata_Location_Y")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFeatures:
    """The cells of one site.

    Attributes:
        features: (n, d), in the order of the locations.
        locations: (n, 2) centres in pixels where the file has them, else None.
        metadata: What the file says of the site, where it was asked for.
    """

    features: Float[np.ndarray, "n d"]
    locations: Shaped[np.ndarray, "n k"] | None = None
    metadata: dict[str, Any] | None = None


def read_site_features(path: Path, *, metadata: bool = False) -> SiteFeatures:
    """Read one site.

    Args:
        path: PLATE/WELL/SITE.npz, or SITE/embedding.npz of the Gallery.
        metadata: Whether the array `metadata` is read, too.

    Raises:
        InputError: It is missing or damaged, features and locations differ in number, or the
            metadata hold something else than plain values.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            features = np.atleast_2d(file["features"])
            locations = file["locations"] if "locations" in file.files else None
    except _FAULTS as error:
        raise InputError(f"{path} cannot be read: {error}", fix="copy the file again") from error
    if locations is not None and len(locations) != len(features):
        raise InputError(
            f"{path} holds features of {len(features)} cells and {len(locations)} locations",
            fix="extract the features of this site again",
        )
    told = _metadata(path) if metadata else None
    return SiteFeatures(features=features, locations=locations, metadata=told)


def _metadata(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            raw = archive.read("metadata.npy")
        stream = BytesIO(raw)
        major, _ = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if major == 1 else (
            np.lib.format.read_array_header_2_0
        )  # fmt: skip
        header(stream)
        value = _Plain(stream).load()
        value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    except (UnpicklingError, AttributeError, TypeError, IndexError, *_FAULTS) as error:
        raise InputError(
            f"the metadata of {path} are no plain values: {error}",
            fix="read the file without them; plate, well and site are in its path",
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            f"the metadata of {path} are no dictionary", fix="read the file without them"
        )
    return {str(key): entry for key, entry in value.items()}


class _Plain(Unpickler):
    """Builds arrays of plain values; asked for any other object it stops."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def write_site_features(profiles: Profiles, folder: Path) -> list[Path]:
    """Write profiles of cells or sites as PLATE/WELL/SITE.npz, each whole or not at all.

    Each file holds `features` (n, d) as float32 and, where the rows have them, `locations` (n, 2)
    from Metadata_Location_X and _Y; rows keep their order. The pickled `metadata` of DeepProfiler's
    own files is not written: plate, well and site are in the path.

    Args:
        profiles: Rows with Metadata_Plate, _Well and _Site.
        folder: Where the plates' folders are made.

    Returns:
        The files, in the order of the first row of each.

    Raises:
        InputError: A column is missing, or a name is empty or no name of a file.
        StorageError: The disk is full or read-only.
    """
    table = profiles.metadata.reset_index(drop=True)
    columns = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    if lost := [column for column in columns if column not in table]:
        raise InputError(f"the profiles lack {', '.join(lost)}", fix="add these columns")
    keys = pd.DataFrame({column: as_text(table[column]) for column in columns})
    names = sorted({name for column in columns for name in keys[column]})
    if wrong := [name for name in names if name in ("", ".", "..") or set(name) & set("/\\")]:
        raise InputError(
            f"{some([repr(name) for name in wrong])} cannot name a file",
            fix="name plates, wells and sites without slashes",
        )
    located = all(column in table for column in _LOCATIONS)
    written = []
    sites: Any = keys.groupby(columns, sort=False).indices
    for (plate, well, site), rows in sites.items():
        arrays = {"features": np.asarray(profiles.features[rows], dtype=np.float32)}
        if located:
            arrays["locations"] = table.loc[rows, list(_LOCATIONS)].to_numpy(dtype=np.float64)
        path = folder / plate / well / f"{site}.npz"
        with whole(path) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        written.append(path)
    return written
