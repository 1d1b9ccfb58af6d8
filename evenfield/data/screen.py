"""A screen on disk: a folder with the table, the pixels and their statistics.

`manifest.parquet` one row per image; `pixels.npy` the integer pixels, (N, C, H, W), memory-mapped;
`statistics.parquet` intensities per plate and channel; `screen.json` everything else.
"""

from __future__ import annotations

import json
from copy import copy
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evenfield.data.names import as_text
from evenfield.data.roles import Roles
from evenfield.errors import InputError

SCHEMA = 1
"""The version of the folder's layout; another version is refused."""

MANIFEST, PIXELS, STATISTICS, INFO = (
    "manifest.parquet",
    "pixels.npy",
    "statistics.parquet",
    "screen.json",
)


class Screen:
    """The read side of a screen. Cheap to open, safe to pickle and to share between threads.

    Attributes:
        folder: Where it lies.
        manifest: One row per image; row i of the table is image i of `pixels`.
        channels: Names of the channels, in the order of `pixels`.
        roles: Which column plays which role.
        info: What `screen.json` holds (provenance, fingerprint, findings of the door's checks).
    """

    def __init__(
        self, folder: Path, manifest: pd.DataFrame, roles: Roles, info: dict[str, Any]
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.roles = roles
        self.info = info
        self.channels: tuple[str, ...] = tuple(info["channels"])

    @classmethod
    def open(cls, folder: Path | str) -> Screen:
        """Open a folder that `ingest`, `simulate` or a `ScreenWriter` wrote.

        Raises:
            InputError: It is no screen, of another schema, or its parts do not fit together.
        """
        folder = Path(folder)
        path = folder / INFO
        if not path.is_file():
            raise InputError(
                f"{folder} is not a screen (it has no {INFO})",
                fix="give a folder written by `evenfield ingest` or `evenfield simulate`",
            )
        redo = "write the screen again with `evenfield ingest` or `evenfield simulate`"
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
            version = info["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read: {error!r}", fix=redo) from error
        if version != SCHEMA:
            raise InputError(
                f"{folder} has schema version {version}, this Evenfield reads {SCHEMA}",
                fix=f"{redo}, or use the version of Evenfield that wrote it",
            )
        for name in (MANIFEST, PIXELS, STATISTICS):
            if not (folder / name).is_file():
                raise InputError(f"{folder} has lost its {name}", fix=redo)
        manifest = pd.read_parquet(folder / MANIFEST)
        if len(manifest) != info["num_images"]:
            raise InputError(
                f"{folder / MANIFEST} has {len(manifest)} rows, {INFO} says {info['num_images']}",
                fix=redo,
            )
        return cls(folder, manifest, Roles(**info["roles"]), info)

    def __repr__(self) -> str:
        return f"Screen({str(self.folder)!r}, {self.num_images} images, {self.shape} {self.dtype})"

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry every pixel along.
        lazy = ("pixels", "statistics")
        return {name: value for name, value in self.__dict__.items() if name not in lazy}

    @property
    def num_images(self) -> int:
        """How many images, N."""
        return len(self.manifest)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        c, h, w = self.info["shape"]
        return c, h, w

    @property
    def dtype(self) -> np.dtype[Any]:
        """Integer type of the pixels."""
        return np.dtype(self.info["dtype"])

    @property
    def fingerprint(self) -> str:
        """Hash of table, channels and pixels: equal screens have equal fingerprints."""
        return str(self.info["fingerprint"])

    @property
    def pixel_size_um(self) -> float | None:
        """Side of a pixel in micrometres, where known."""
        size = self.info["pixel_size_um"]
        return None if size is None else float(size)

    @cached_property
    def pixels(self) -> np.ndarray:
        """All images, (N, C, H, W) integers, memory-mapped and read-only.

        Raises:
            InputError: The file does not hold what `screen.json` says.
        """
        path = self.folder / PIXELS
        try:
            pixels = np.load(path, mmap_mode="r")
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}", fix="write the screen again") from error
        expected = (self.num_images, *self.shape)
        if pixels.shape != expected or pixels.dtype != self.dtype:
            raise InputError(
                f"{path} holds {pixels.shape} {pixels.dtype}, expected {expected} {self.dtype}",
                fix="write the screen again",
            )
        return pixels

    @cached_property
    def statistics(self) -> pd.DataFrame:
        """Intensities per plate, channel and subset (see `evenfield.data.statistics`)."""
        return pd.read_parquet(self.folder / STATISTICS)

    def with_roles(self, roles: Roles) -> Screen:
        """The same screen with other columns in the roles.

        Raises:
            InputError: A column does not exist.
        """
        for role, column in asdict(roles).items():
            if column not in self.manifest:
                raise InputError(
                    f"no column {column!r} to play the role {role!r}",
                    fix=f"choose one of: {', '.join(map(str, self.manifest.columns))}",
                )
        other = copy(self)
        other.roles = roles
        return other

    def codes(self, column: str) -> tuple[np.ndarray, list[str]]:
        """A column as integers: (codes (N,) int64, sorted names); missing and "" are -1.

        Raises:
            InputError: The column does not exist.
        """
        if column not in self.manifest:
            raise InputError(
                f"the screen has no column {column!r}",
                fix=f"choose one of: {', '.join(map(str, self.manifest.columns))}",
            )
        text = pd.Series(as_text(self.manifest[column]), dtype=object)
        names = sorted(set(text) - {""})
        codes = text.map({name: code for code, name in enumerate(names)}).fillna(-1)
        return codes.to_numpy(dtype=np.int64), names
