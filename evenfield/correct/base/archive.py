"""One file for what was fitted: a zip of `correction.json` and `.npy` arrays, never a pickle.

`numpy.load` opens it (the arrays are called `0.mean.npy`: step 0, `mean`), any unzip shows the
settings. Equal fits give equal bytes.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from evenfield.errors import InputError
from evenfield.files import whole

FORMAT = 1
_HEADER = "correction.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip's clock would make equal fits differ


def write_archive(path: Path, header: dict[str, Any], states: list[dict[str, np.ndarray]]) -> None:
    """Write a header and the arrays of each step, whole or not at all.

    Raises:
        StorageError: The disk is full or read-only.
    """
    told = json.dumps({"format": FORMAT, **header}, indent=2, sort_keys=True, allow_nan=False)
    with whole(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(_HEADER, _EPOCH), told)
        for number, state in enumerate(states):
            for key in sorted(state):
                entry = zipfile.ZipInfo(f"{number}.{key}.npy", _EPOCH)
                with archive.open(entry, "w", force_zip64=True) as member:
                    npy.write_array(member, np.asarray(state[key], order="C"), allow_pickle=False)


def read_archive(path: Path) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """The header and the arrays of each step.

    Raises:
        InputError: There is no such file, or it is no saved correction of this version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read(_HEADER))
            states: list[dict[str, np.ndarray]] = [{} for _ in header["steps"]]
            for entry in archive.namelist():
                if entry != _HEADER:
                    number, _, key = entry.removesuffix(".npy").partition(".")
                    with archive.open(entry) as member:
                        states[int(number)][key] = npy.read_array(member, allow_pickle=False)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}", fix="give an existing file"
        ) from error
    except (zipfile.BadZipFile, KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{path} is no saved correction ({error})", fix="give a file that `save` wrote"
        ) from error
    if header.get("format") != FORMAT:
        raise InputError(
            f"{path} has the format {header.get('format')}, this version reads {FORMAT}",
            fix="fit anew, or use the version of evenfield that wrote it",
        )
    return header, states
