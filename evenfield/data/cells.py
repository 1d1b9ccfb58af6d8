"""Crops around cells: their centres from files, their pixels from whole fields."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd

from evenfield.data.decode import check_image
from evenfield.data.roles import some
from evenfield.data.sources.base import read_table
from evenfield.errors import InputError

X, Y = "Nuclei_Location_Center_X", "Nuclei_Location_Center_Y"
_HELD = 16  # fields in memory while their cells are cut out


def read_locations(folder: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The cells of each site from PLATE/WELL-SITE-Nuclei.csv (DeepProfiler).

    Args:
        folder: Where the plates' folders lie.
        table: One row a site: Metadata_Plate, _Well and _Site.

    Returns:
        Row of the site, number of the cell in its file (from 0), x and y in pixels; and a note on
        sites without a file, which give no cell.

    Raises:
        InputError: There is no cell at all, a column is missing, or a centre is no number.
    """
    parts, without = [], []
    keys = zip(table["Metadata_Plate"], table["Metadata_Well"], table["Metadata_Site"], strict=True)
    for row, (plate, well, site) in enumerate(keys):
        file = folder / str(plate) / f"{well}-{site}-Nuclei.csv"
        if not file.is_file():
            without.append(f"{plate}/{well}-{site}")
            continue
        cells = read_table(file)
        if lost := [column for column in (X, Y) if column not in cells]:
            raise InputError(f"{file} lacks {', '.join(lost)}", fix="give the centres of nuclei")
        x, y = (pd.to_numeric(cells[axis], errors="coerce") for axis in (X, Y))
        if not np.isfinite([x, y]).all():
            raise InputError(f"{file} holds a centre that is no number", fix="drop that cell")
        parts.append(pd.DataFrame({"row": row, "number": range(len(x)), "x": x, "y": y}))
    if not sum(map(len, parts)):
        raise InputError(
            f"no cell of these {len(table)} sites has a location in {folder}",
            fix="give PLATE/WELL-SITE-Nuclei.csv, or read whole fields",
        )
    text = f"{len(without)} of {len(table)} sites have no file of locations and give no cell: "
    notes = (text + some(without),) if without else ()
    return pd.concat(parts, ignore_index=True), notes


class CellCrops:
    """Square crops; a field is decoded once while its cells are cut, by whichever thread is first.

    Args:
        read: Row of a site to its field, (C, H, W).
        name: Row of a site to its name.
        channels: C names.
        cells: What `read_locations` gave.
        box: Side of a crop in pixels.
    """

    def __init__(
        self,
        read: Callable[[int], np.ndarray],
        name: Callable[[int], str],
        channels: tuple[str, ...],
        cells: pd.DataFrame,
        box: int,
    ) -> None:
        self.cells = cells
        self._read, self._name, self._channels, self._box = read, name, channels, box
        self._held: OrderedDict[int, Future[np.ndarray]] = OrderedDict()
        self._lock = Lock()

    def leave_edges(self, plate: pd.Series) -> tuple[str, ...]:
        """Leave out cells whose crop would leave the image, and say how many.

        Args:
            plate: Of each site; images of a plate have one size, its first site tells it.

        Raises:
            InputError: No cell is left, or a plate's first image cannot be read.
        """
        first = {name: row for row, name in reversed(list(enumerate(plate)))}
        size = {name: self._field(row).shape[1:] for name, row in first.items()}
        limit = np.array([size[plate.iat[row]] for row in self.cells["row"]])
        x, y = (_first(self.cells[axis].to_numpy(), self._box) for axis in ("x", "y"))
        inside = (np.minimum(x, y) >= 0) & (y + self._box <= limit[:, 0])
        inside &= x + self._box <= limit[:, 1]
        num = int((~inside).sum())
        if num == len(inside):
            raise InputError(
                f"no crop of {self._box} pixels around a cell fits its image",
                fix="choose a smaller box, or fill up with 0 (edge)",
            )
        self.cells = self.cells[inside].reset_index(drop=True)
        text = f"{num} of {len(inside)} cells lie too near to an edge for {self._box} pixels and "
        return (text + "are left out",) if num else ()

    def name(self, row: int) -> str:
        """The cell in its site's file."""
        cell = self.cells.iloc[row]
        return f"cell {int(cell['number'])} of {self._name(int(cell['row']))}"

    def read(self, row: int) -> np.ndarray:
        """A crop, (C, box, box); 0 beyond the image.

        Raises:
            InputError: The field cannot be read, or one of its channels is empty.
        """
        cell = self.cells.iloc[row]
        field, box = self._field(int(cell["row"])), self._box
        x, y = (int(_first(cell[axis], box)) for axis in ("x", "y"))
        height, width = field.shape[1:]
        crop = np.zeros((len(field), box, box), field.dtype)
        part = field[:, max(y, 0) : max(y + box, 0), max(x, 0) : max(x + box, 0)]
        if 0 in part.shape:
            raise InputError(
                f"{self.name(row)}: ({cell['x']:g}, {cell['y']:g}) lies outside of its image of "
                f"{height} x {width}",
                fix="use the locations of these images",
            )
        top, left = max(-y, 0), max(-x, 0)
        crop[:, top : top + part.shape[1], left : left + part.shape[2]] = part
        return crop

    def _field(self, row: int) -> np.ndarray:
        with self._lock:
            future = self._held.get(row)
            if mine := future is None:
                future = self._held[row] = Future()
                if len(self._held) > _HELD:
                    self._held.popitem(last=False)
        assert future is not None
        if mine:
            try:
                image = self._read(row)
                check_image(image, self._name(row), self._channels)
                future.set_result(image)
            except InputError as error:
                future.set_exception(error)
            finally:
                future.cancel()  # without effect, unless something unforeseen was raised
        return future.result()


def _first(centre: np.ndarray, box: int) -> np.ndarray:
    """The first pixel of a crop: the pixel of the centre is pixel box // 2 of it.

    >>> _first(np.array([9.6, 10.4]), 4).tolist()
    [8, 8]
    """
    return np.floor(centre + 0.5).astype(int) - box // 2
