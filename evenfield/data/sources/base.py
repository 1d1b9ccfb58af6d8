"""What a reader is: it lists the fields of a screen and decodes one at a time."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

import numpy as np
import pandas as pd

from evenfield.data.decode import join_channels, read_image
from evenfield.data.process import Process
from evenfield.errors import InputError
from evenfield.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a reader found.

    Attributes:
        manifest: One row per field.
        channels: Their names, in the order of the arrays.
        read: Row to (C, H, W) as decoded; safe to call from several threads.
        name: Row to what a message calls it (its file).
        process: What is done to each field before it is stored.
        pixel_size_um: Side of a pixel of the files in micrometres, where known.
        pixel_sizes: Row to that side, where microscopes differ.
        provenance: What else is worth knowing about where it comes from.
        notes: What was left out or is doubtful: said as warnings.
        may_be_empty: Row to the numbers of the channels that may be empty: never recorded and
            stored as 0, or part of a release that is kept whole.
    """

    manifest: pd.DataFrame
    channels: tuple[str, ...]
    read: Callable[[int], np.ndarray]
    name: Callable[[int], str]
    process: Process = field(default_factory=Process)
    pixel_size_um: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    may_be_empty: Callable[[int], Collection[int]] = lambda _: ()
    pixel_sizes: Callable[[int], float | None] | None = None

    def size_of(self, row: int) -> float | None:
        """Side of a pixel of a row's files in micrometres, where known."""
        return self.pixel_size_um if self.pixel_sizes is None else self.pixel_sizes(row)


class Reader(ABC):
    """The contract of a reader: nothing is downloaded, nothing is written."""

    name: ClassVar[str]

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """The settings of a reader."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def listing(self) -> Listing:
        """The fields of the screen.

        Raises:
            InputError: A table cannot be read or lacks what is needed.
        """


SOURCES: Registry[Reader] = Registry("reader", package="evenfield.data.sources")


class Files:
    """The image files of each field: one per channel, or one that holds all planes.

    Args:
        paths: One tuple of files for each row.
        planes: For one file with all channels: which of its planes are taken, and of how many.
    """

    def __init__(
        self, paths: Sequence[tuple[Path, ...]], planes: tuple[list[int], int] | None = None
    ) -> None:
        self.paths = list(paths)
        self._planes = planes

    def read(self, row: int) -> np.ndarray:
        """Decode a field, (C, H, W).

        Raises:
            InputError: A file is missing or damaged, or its channels differ in size or type.
        """
        if self._planes is not None:
            taken, num = self._planes
            return read_image(self.paths[row][0], num_channels=num)[taken]
        images = [read_image(path, num_channels=1) for path in self.paths[row]]
        return join_channels(images, self.name(row))

    def name(self, row: int) -> str:
        """The field's first file."""
        return str(self.paths[row][0])

    def choose(self, rows: Sequence[int]) -> Files:
        """The files of some rows."""
        return Files([self.paths[row] for row in rows], self._planes)

    def missing(self) -> dict[int, list[Path]]:
        """Rows with files that are not there, by listing each folder once."""
        folders: dict[Path, set[str]] = {}
        answer: dict[int, list[Path]] = {}
        for row, paths in enumerate(self.paths):
            for path in paths:
                if path.parent not in folders:
                    folders[path.parent] = _names(path.parent)
                if path.name not in folders[path.parent]:
                    answer.setdefault(row, []).append(path)
        return answer


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


Missing = Literal["error", "skip"]


class Places(Protocol):
    """Where the files of each row are: what `Files` and readers with files elsewhere offer."""

    def missing(self) -> Mapping[int, Sequence[object]]:
        """Rows with files that are not there."""

    def choose(self, rows: Sequence[int]) -> Self:
        """The files of some rows."""


P = TypeVar("P", bound=Places)


def without_missing(
    table: pd.DataFrame, files: P, missing: Missing
) -> tuple[pd.DataFrame, P, tuple[str, ...]]:
    """Under `skip`, leave out fields with missing files and say which; else all as they are.

    Raises:
        InputError: No field is left.
    """
    if missing == "error":
        return table, files, ()
    lost = files.missing()
    if not lost:
        return table, files, ()
    keep = [row for row in range(len(table)) if row not in lost]
    if not keep:
        first = next(iter(lost.values()))[0]
        raise InputError(
            f"no field has all its files (the first that is missing: {first})",
            fix="check the folder and the file names",
        )
    absent = [PurePath(str(path)).name for paths in lost.values() for path in paths]
    text = ", ".join(absent[:20]) + (f" and {len(absent) - 20} more" if len(absent) > 20 else "")
    note = f"{len(lost)} of {len(table)} fields were left out, their files are missing: {text}"
    return table.iloc[keep].reset_index(drop=True), files.choose(keep), (note,)


def read_table(path: Path) -> pd.DataFrame:
    """A CSV, TSV (also compressed) or Parquet file; text stays text ("007", "NA", "1e5").

    Raises:
        InputError: It is missing, empty or damaged.
    """
    names = [suffix.lower() for suffix in path.suffixes]
    try:
        if names and names[-1] in {".parquet", ".pq"}:
            return pd.read_parquet(path)
        separator = "\t" if set(names) & {".tsv", ".txt"} else ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"there is no table {path}", fix="check the path") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"the table {path} cannot be read: {error}", fix="give a CSV, TSV or Parquet file"
        ) from error
