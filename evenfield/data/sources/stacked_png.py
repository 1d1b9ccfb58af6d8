"""CODA's layout: one PNG a site, its channels side by side, `{plate}/{Well}_{Site}.png`.

Fredin Haslum et al., WACV 2024 (arXiv 2311.12623); their table of rows is unpublished: moa_id,
Metadata_moa, Metadata_Plate, paths, split, JCP2022_id, Metadata_Source, Metadata_Batch, one row a
site. The stack is DNA, AGP, ER, Mito, RNA by the author's script for JUMP, so CODA's channels 0, 1
and 4 are DNA, AGP and RNA (an inference).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from evenfield.data.channels import find_channels
from evenfield.data.decode import read_image
from evenfield.data.jump_tables import DMSO
from evenfield.data.names import as_text, has_controls
from evenfield.data.process import Process
from evenfield.data.roles import some
from evenfield.data.sources.base import (
    SOURCES,
    Listing,
    Missing,
    Reader,
    read_table,
    without_missing,
)
from evenfield.errors import InputError

STACK = ("DNA", "AGP", "ER", "Mito", "RNA")
_NAME = re.compile(r"([^/_]+)_([^/_]+)\.png", re.IGNORECASE)
_RENAME = {
    "JCP2022_id": "Metadata_JCP2022",
    "moa_id": "Metadata_moa_id",
    "split": "Metadata_Split",
    "paths": "Metadata_File",
}


@SOURCES.register("stacked-png")
class StackedPNG(Reader):
    """A folder of PNGs with the channels of a site side by side, and a table of sites."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Reader.Config):
        """The settings of the reader.

        Attributes:
            folder: The images: PLATE/WELL_SITE.png.
            table: One row a site: Metadata_Plate, and `paths` (the file in the plate's folder) or
                Metadata_Well and Metadata_Site.
            stack: What the parts of each file show, from left to right.
            channels: Names of the channels, in the order to store them; none = the stack.
            unannotated: What to do with sites without a mechanism: `keep` them without a label, or
                `drop` them as CODA does, and DMSO with them.
            negcon: Compounds that are negative controls, where no column says so.
            missing: What to do with sites whose file is missing: `error`, or `skip` and say so.
            pixel_size_um: Side of a pixel of the files in micrometres, where known.
            process: What is done to each field.
        """

        folder: Path
        table: Path
        stack: tuple[str, ...] = STACK
        channels: tuple[str, ...] = ()
        unannotated: Literal["keep", "drop"] = "keep"
        negcon: tuple[str, ...] = ("DMSO", DMSO)
        missing: Missing = "error"
        pixel_size_um: float | None = None
        process: Process = field(default_factory=Process)

    config: Config

    def listing(self) -> Listing:
        """The rows of the table and their files."""
        config = self.config
        channels = config.channels or config.stack
        taken = find_channels(channels, config.stack, "the stack")
        table = _sites(read_table(config.table), config.table)
        if not has_controls(table) and "Metadata_Compound" in table:
            control = table["Metadata_Compound"].isin(config.negcon)
            table["Metadata_ControlType"] = np.where(control, "negcon", "trt").astype(object)
        notes: tuple[str, ...] = ()
        if config.unannotated == "drop":
            table, notes = _annotated(table)
        paths = [
            config.folder / plate / name
            for plate, name in zip(table["Metadata_Plate"], table["Metadata_File"], strict=True)
        ]
        places = [config.stack.index(name) for name in taken]
        files = _Stacks(paths, places, len(config.stack))
        table, files, lost = without_missing(table, files, config.missing)
        return Listing(
            manifest=table,
            channels=channels,
            read=files.read,
            name=files.name,
            process=config.process,
            pixel_size_um=config.pixel_size_um,
            provenance={"data": "stacked PNGs", "stack": ", ".join(config.stack)},
            notes=notes + lost,
        )


def _sites(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table under the house's names, with well, site and file of each row."""
    table = table.loc[:, [not str(c).startswith("Unnamed: ") and c != "" for c in table.columns]]
    table = table.rename(columns={k: v for k, v in _RENAME.items() if v not in table})
    table = pd.DataFrame({column: as_text(table[column]) for column in table}, index=table.index)
    if "Metadata_Plate" not in table:
        raise InputError(f"{path} lacks Metadata_Plate", fix="name each site's plate")
    if "Metadata_File" not in table:
        if not {"Metadata_Well", "Metadata_Site"} <= set(table):
            raise InputError(
                f"{path} names neither `paths` nor Metadata_Well and Metadata_Site",
                fix="name each site's file, or its well and site",
            )
        table["Metadata_File"] = table["Metadata_Well"] + "_" + table["Metadata_Site"] + ".png"
    parts = table["Metadata_File"].str.rpartition("/")[2].str.extract(_NAME)
    if len(odd := table.loc[parts[0].isna(), "Metadata_File"]):
        raise InputError(
            f"{path}: {len(odd)} files are not called WELL_SITE.png: {some(odd.tolist())}",
            fix="name files as A01_1.png",
        )
    for column, part in (("Metadata_Well", 0), ("Metadata_Site", 1)):
        if column not in table:
            table[column] = parts[part]
    if "Metadata_JCP2022" in table and "Metadata_Compound" not in table:
        table["Metadata_Compound"] = table["Metadata_JCP2022"]
    if "Metadata_moa" in table and "Metadata_Label" not in table:
        table["Metadata_Label"] = table["Metadata_moa"]
    return table


def _annotated(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    if "Metadata_Label" not in table:
        raise InputError(
            "no column names a mechanism", fix="give Metadata_moa, or keep unannotated sites"
        )
    known = table["Metadata_Label"] != ""
    if not known.any():
        raise InputError("no site has a mechanism", fix="keep unannotated sites")
    if known.all():
        return table, ()
    note = f"{int((~known).sum())} of {len(table)} sites have no mechanism and are left out"
    return table[known].reset_index(drop=True), (note,)


class _Stacks:
    """One file a row; some of its parts are taken."""

    def __init__(self, paths: Sequence[Path], places: list[int], num: int) -> None:
        self._paths, self._places, self._num = list(paths), places, num

    def name(self, row: int) -> str:
        """The row's file."""
        return str(self._paths[row])

    def choose(self, rows: Sequence[int]) -> _Stacks:
        """The files of some rows."""
        return _Stacks([self._paths[row] for row in rows], self._places, self._num)

    def missing(self) -> dict[int, list[Path]]:
        """Rows whose file is not there."""
        return {row: [path] for row, path in enumerate(self._paths) if not path.is_file()}

    def read(self, row: int) -> np.ndarray:
        """The chosen channels, (C, H, W).

        Raises:
            InputError: The file is missing, damaged, or no stack of that many images.
        """
        wide = read_image(self._paths[row], num_channels=1)[0]
        if wide.shape[1] % self._num:
            raise InputError(
                f"{self.name(row)}: {wide.shape[1]} pixels are no {self._num} images side by side",
                fix="name in `stack` what the files hold",
            )
        parts = np.split(wide, self._num, axis=1)
        return np.stack([parts[place] for place in self._places])
