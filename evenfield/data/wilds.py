"""What the readers of WILDS share: a release's folder, its table, its counts, its pictures.

Koh et al., ICML 2021 (arXiv 2012.07421); layouts as in the loaders of `wilds` 2.0.0 (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from evenfield.data.decode import read_rgb
from evenfield.errors import InputError

SPLIT = "Metadata_Split"
"""The column that says who trains and who is judged: `SplitConfig.column` for WILDS."""


def open_release(
    folder: Path, name: str, columns: Sequence[str], version: str = "1.0"
) -> tuple[Path, pd.DataFrame]:
    """The folder of a release and its metadata.csv, every value as text ("004" stays "004").

    Args:
        folder: The release's own folder (`rxrx1_v1.0`), or the one that holds it.
        name: The release, e.g. `rxrx1`.
        columns: What the table must have.
        version: Of the release.

    Raises:
        InputError: The folder, its RELEASE file, the table or a column is missing.
    """
    root = folder / f"{name}_v{version}"
    root = root if root.is_dir() else folder
    mark = root / f"RELEASE_v{version}.txt"
    if not mark.is_file():
        raise InputError(
            f"there is no {mark}",
            fix=f"give the folder that holds {name}_v{version}, as the WILDS package unpacks it",
        )
    path = root / "metadata.csv"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", fix="unpack the archive again") from (
            error
        )
    if lost := [column for column in columns if column not in table]:
        raise InputError(f"{path} lacks {', '.join(lost)}", fix="unpack the archive again")
    return root, table


def demand(holds: bool, problem: str) -> None:
    """Refuse a release that is not what it should be.

    Raises:
        InputError: It does not hold.
    """
    if not holds:
        raise InputError(
            problem, fix="unpack the archive again; for a part of it set check_sizes to False"
        )


def demand_counts(split: pd.Series, expected: Mapping[str, int]) -> None:
    """Refuse a release whose splits have other sizes.

    Raises:
        InputError: With the first split that has.
    """
    for name, count in expected.items():
        found = int((split == name).sum())
        demand(found == count, f"the split {name} has {found} images, not {count}")


class Pictures:
    """One colour PNG for each row, named when it is asked for (450,000 paths cost seconds).

    Args:
        root: Folder of the release.
        files: Each row's file, relative to it.
        side: Height and width that every picture must have, in pixels; none = any.
    """

    def __init__(self, root: Path, files: pd.Series, side: int | None) -> None:
        self.root, self._files, self._side = root, files.to_numpy(dtype=object), side

    def name(self, row: int) -> str:
        """The file of a row."""
        return str(self.root / self._files[row])

    def read(self, row: int) -> np.ndarray:
        """Red, green and blue, (3, H, W) uint8.

        Raises:
            InputError: The file is missing or damaged, or of another size or depth.
        """
        image = read_rgb(self.root / self._files[row])
        if self._side is not None:
            found = f"{image.shape[1]} x {image.shape[2]} {image.dtype}"
            demand(
                found == f"{self._side} x {self._side} uint8",
                f"{self.name(row)}: {found}, not {self._side} x {self._side} uint8",
            )
        return image

    def demand_files(self, rows: Sequence[int]) -> None:
        """Look whether the files of some rows are there.

        Raises:
            InputError: With the first that is not.
        """
        for row in rows:
            if not (self.root / self._files[row]).is_file():
                raise InputError(f"there is no {self.name(row)}", fix="unpack the archive again")
