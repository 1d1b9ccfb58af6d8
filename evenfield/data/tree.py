"""A folder of files on this machine, or wherever fsspec reaches (s3://, memory://, ...).

Nothing is kept of what is read from afar: the screen that is ingested from it is the copy.
"""

from __future__ import annotations

import gzip
import os
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import error as ZlibError

import numpy as np
import pandas as pd

from evenfield.data.decode import decode_image, read_image
from evenfield.errors import InputError


class Tree:
    """Reads below a root; safe to use from several threads.

    Args:
        root: A folder, or an address such as s3://cellpainting-gallery/cpg0016-jump.
        anonymous: Whether s3:// is read without credentials.

    Raises:
        InputError: The package that reaches the address is not installed.
    """

    def __init__(self, root: str, *, anonymous: bool = True) -> None:
        self.root = root.removeprefix("file://").rstrip("/")
        self._names: dict[str, frozenset[str]] = {}
        self._remote = _file_system(self.root, anonymous) if "://" in self.root else None

    def read(self, path: str) -> bytes:
        """The bytes of a file.

        Raises:
            InputError: It is missing or cannot be read.
        """
        try:
            if self._remote is None:
                return Path(path).read_bytes()
            return bytes(self._remote.cat_file(path))
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror or error or type(error).__name__}",
                fix="check the path and the permissions",
            ) from error

    def image(self, path: str) -> np.ndarray:
        """One channel, (1, H, W).

        Raises:
            InputError: It is missing, damaged, or holds more.
        """
        if self._remote is None:
            return read_image(Path(path), num_channels=1)
        return decode_image(self.read(path), path, num_channels=1)

    def array(self, path: str) -> np.ndarray:
        """An .npy file of numbers.

        Raises:
            InputError: It is missing or damaged.
        """
        try:
            array: np.ndarray = np.load(BytesIO(self.read(path)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InputError(f"{path}: {error}", fix="copy the file again") from error
        return array

    def table(self, path: str) -> pd.DataFrame:
        """A CSV (also .gz) or Parquet file; text stays text ("007", "NA", "1e5").

        Raises:
            InputError: It is missing or damaged.
        """
        raw = self.read(path)
        try:
            if path.endswith((".parquet", ".pq")):
                return pd.read_parquet(BytesIO(raw))
            text = gzip.decompress(raw) if path.endswith(".gz") else raw
            return pd.read_csv(BytesIO(text), dtype=str, keep_default_na=False)
        except (OSError, ValueError, EOFError, ZlibError) as error:
            raise InputError(f"{path}: {error}", fix="copy the file again") from error

    def has(self, path: str) -> bool:
        """Whether a file is there; each folder is listed once."""
        folder, _, name = path.rpartition("/")
        if folder not in self._names:
            self._names[folder] = self._listed(folder)
        return name in self._names[folder]

    def _listed(self, folder: str) -> frozenset[str]:
        try:
            if self._remote is None:
                return frozenset(os.listdir(folder))
            paths = self._remote.ls(folder, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()
        except OSError as error:
            raise InputError(
                f"{folder}: {error.strerror or error}", fix="check the address and the permissions"
            ) from error
        return frozenset(str(path).rstrip("/").rpartition("/")[2] for path in paths)


def _file_system(root: str, anonymous: bool) -> Any:
    protocol = root.partition("://")[0]
    try:
        fsspec = import_module("fsspec")
        return fsspec.filesystem(protocol, **({"anon": anonymous} if protocol == "s3" else {}))
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{root} cannot be reached: {error}",
            fix="pip install 'evenfield[s3]', or give a folder with a copy of the files",
        ) from error
