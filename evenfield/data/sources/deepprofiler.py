"""A DeepProfiler project: index.csv, images, locations of cells, compressed PNG trees.

Layout of cytomining/DeepProfiler 0.5: `inputs/metadata/index.csv` has one row a site and one column
of paths a channel; `inputs/locations/PLATE/WELL-SITE-Nuclei.csv` the centres of nuclei in pixels;
`outputs/compressed/images/PLATE/NAME.png` what `prepare` made. CPG0004 as CDCL used it is such a
table, too: `replicate` makes its split.

A crop holds `box` x `box` pixels around a centre. Cells whose crop would leave the image are left
out, or filled up with 0; their numbers in the file of locations stay, so they match features in
`features/PLATE/WELL/SITE.npz`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd

from evenfield.data.cells import CellCrops, read_locations
from evenfield.data.channels import channel_key, find_channels
from evenfield.data.names import as_text, has_controls
from evenfield.data.process import Process
from evenfield.data.roles import some
from evenfield.data.sources.base import (
    SOURCES,
    Files,
    Listing,
    Missing,
    Reader,
    read_table,
    without_missing,
)
from evenfield.errors import InputError

CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")
SITE_KEY = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]


@SOURCES.register("deepprofiler")
class DeepProfiler(Reader):
    """A DeepProfiler project: whole sites, or crops around its cells."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Reader.Config):
        """The settings of the reader.

        Attributes:
            folder: The project, with `inputs` and, for compressed images, `outputs`.
            index: The table of sites; none = inputs/metadata/index.csv.
            images: Which images: `raw` (inputs/images) or `compressed` (outputs/compressed/images,
                8 bit).
            root: Where the paths of the index begin; none = inputs/images (of `raw` images only).
            channels: Names of the channels, in the order to store them (Cell Painting CNN-1's is
                the default).
            columns: Columns of the index that name their files; none = found by the names.
            crops: `field`: a row a site; `cells`: a row a cell.
            box: Side of a cell's crop in pixels.
            edge: What to do with cells whose crop leaves the image: `skip` and say so, or `zero`.
            treatment: Column of what was put in the well; none = Metadata_Compound or
                Metadata_Treatment where there is one.
            label: Column of what is predicted; none = Metadata_Label where there is one.
            negcon: Treatments that are negative controls, where no column says so.
            replicate: Column with a number of replicate; the median of a plate gives
                Metadata_Split: below 4 train, 4 val, above test (CDCL on CPG0004); none = no split.
            fold: Which of the five such splits: each next one tests the next replicate, and selects
                on the one that the fold before tested.
            missing: What to do with sites whose files are missing: `error`, or `skip` and say so.
            pixel_size_um: Side of a pixel of the files in micrometres, where known.
            process: What is done to each field, or to each crop of a cell.
        """

        folder: Path
        index: Path | None = None
        images: Literal["raw", "compressed"] = "raw"
        root: Path | None = None
        channels: tuple[str, ...] = CHANNELS
        columns: tuple[str, ...] = ()
        crops: Literal["field", "cells"] = "field"
        box: int = 128
        edge: Literal["skip", "zero"] = "skip"
        treatment: str = ""
        label: str = ""
        negcon: tuple[str, ...] = ("DMSO", "EMPTY_", "")
        replicate: str = ""
        fold: Literal[1, 2, 3, 4, 5] = 1
        missing: Missing = "error"
        pixel_size_um: float | None = None
        process: Process = field(default_factory=Process)

        def __post_init__(self) -> None:
            if self.box < 1:
                raise InputError(f"a box of {self.box} pixels", fix="give 1 or more")
            if self.crops == "cells" and (self.process.illumination or self.process.num_crops > 1):
                raise InputError(
                    "a plate's illumination and a grid of crops cannot be made from crops of cells",
                    fix="read compressed images, which are corrected, or whole fields",
                )

    config: Config

    def listing(self) -> Listing:
        """The sites of the index, or their cells."""
        config = self.config
        path = config.index or config.folder / "inputs" / "metadata" / "index.csv"
        table = read_table(path)
        _check_index(table, path)
        files = Files(self._paths(table, path))
        table = self._annotated(table, path)
        table, files, notes = without_missing(table, files, config.missing)
        sites = _Sites(files, eight_bit=config.images == "compressed")
        common: dict[str, Any] = {
            "channels": config.channels,
            "process": config.process,
            "pixel_size_um": config.pixel_size_um,
            "provenance": {"data": "DeepProfiler project", "images": config.images},
        }
        if config.crops == "field":
            return Listing(manifest=table, read=sites.read, name=files.name, notes=notes, **common)
        cells, lost = read_locations(config.folder / "inputs" / "locations", table)
        crops = CellCrops(sites.read, files.name, config.channels, cells, config.box)
        if config.edge == "skip":
            lost += crops.leave_edges(table["Metadata_Plate"])
        manifest = table.iloc[crops.cells["row"]].reset_index(drop=True)
        return Listing(
            manifest=manifest.assign(
                Metadata_Object=crops.cells["number"].astype(str).to_numpy(dtype=object),
                Metadata_Location_X=crops.cells["x"].to_numpy(),
                Metadata_Location_Y=crops.cells["y"].to_numpy(),
            ),
            read=crops.read,
            name=crops.name,
            notes=notes + lost,
            # The field was looked at; a dark channel of one cell is a finding, no fault.
            may_be_empty=lambda _: range(len(config.channels)),
            **common,
        )

    def _paths(self, table: pd.DataFrame, path: Path) -> list[tuple[Path, ...]]:
        """The file of each channel of each site."""
        config = self.config
        columns = list(config.columns) or _path_columns(table, config.channels, path)
        if len(columns) != len(config.channels):
            raise InputError(
                f"{len(columns)} columns of files for {len(config.channels)} channels",
                fix="name one column a channel",
            )
        if absent := [column for column in columns if column not in table]:
            raise InputError(
                f"{path} has no column {', '.join(absent)}",
                fix=f"choose from {', '.join(map(str, table.columns))}",
            )
        named = [as_text(table[column]) for column in columns]
        if config.images == "raw":
            root = config.root or config.folder / "inputs" / "images"
            columns_of_paths = [[_or_png(root / name) for name in names] for names in named]
        else:
            # `prepare` keeps the name and drops the folders.
            root, plates = config.folder / "outputs/compressed/images", table["Metadata_Plate"]
            columns_of_paths = [
                [
                    root / plate / f"{PurePosixPath(name).stem}.png"
                    for plate, name in zip(plates, names, strict=True)
                ]
                for names in named
            ]
        return list(zip(*columns_of_paths, strict=True))

    def _annotated(self, table: pd.DataFrame, path: Path) -> pd.DataFrame:
        """Treatment, label, control type and split under the house's names."""
        config = self.config
        told = table.filter(regex="^Metadata_").copy()
        for column, name in (
            (config.treatment, "Metadata_Compound"), (config.label, "Metadata_Label")
        ):  # fmt: skip
            if column and column not in table:
                raise InputError(f"{path} has no column {column}", fix="name one that it has")
            if column:
                told[name] = as_text(table[column])
        words = {word.lower() for word in config.negcon}
        compounds = [c for c in ("Metadata_Compound", "Metadata_Treatment") if c in told]
        if not has_controls(told) and compounds:
            control = [text.lower() in words for text in as_text(told[compounds[0]])]
            told["Metadata_ControlType"] = np.where(control, "negcon", "trt").astype(object)
        if config.replicate:
            told["Metadata_Split"] = replicate_split(table, config.replicate, config.fold)
        return told


def _or_png(path: Path) -> Path:
    """The file, or the PNG of its name where there is only that (as published for CPG0004)."""
    png = path.with_suffix(".png")
    return png if not path.exists() and png.exists() else path


def replicate_split(table: pd.DataFrame, column: str, fold: int = 1) -> np.ndarray:
    """Who trains, by the plate's median number of replicate: below 4 train, 4 val, above test.

    Other folds turn the numbers on: the second tests replicate 1 and selects on 5.

    >>> table = pd.DataFrame({"Metadata_Plate": [*"aaab"], "Replicate": ["1", "2", "5", "4"]})
    >>> replicate_split(table, "Replicate").tolist()
    ['train', 'train', 'train', 'val']
    >>> replicate_split(table, "Replicate", fold=4).tolist()  # a: 2, selects; 3 would test
    ['val', 'val', 'val', 'train']

    Raises:
        InputError: The column is missing or holds something else than numbers.
    """
    if column not in table:
        raise InputError(
            f"the index has no column {column}", fix="name the column of replicates, or none"
        )
    number = pd.to_numeric(table[column], errors="coerce")
    median = number.groupby(table["Metadata_Plate"]).transform("median")
    if median.isna().any():
        plates = sorted(set(table.loc[median.isna(), "Metadata_Plate"]))
        raise InputError(
            f"{column} is no number on plates {some(plates)}", fix="give numbers of replicates"
        )
    code = np.where(median > 4, 5, np.floor(median.clip(1)))
    turned = (code - fold) % 5
    return np.select([turned == 4, turned == 3], ["test", "val"], "train").astype(object)


def _check_index(table: pd.DataFrame, path: Path) -> None:
    if lost := [column for column in SITE_KEY if column not in table]:
        raise InputError(f"{path} lacks {', '.join(lost)}", fix="give DeepProfiler's index.csv")
    repeated = table[table.duplicated(SITE_KEY, keep=False)]
    if len(repeated):
        names = ["/".join(row) for row in repeated[SITE_KEY].drop_duplicates().to_numpy()]
        raise InputError(
            f"{path} repeats {len(names)} sites: {some(names)}", fix="give each site one row"
        )


def _path_columns(table: pd.DataFrame, channels: Sequence[str], path: Path) -> list[str]:
    """Columns that name files: `DNA`, `OrigDNA`, `FileName_OrigDNA`, `path_FileName_OrigDNA`."""
    known = [
        str(column)
        for column in table.columns
        if not str(column).startswith(("Metadata_", "PathName_", "URL_"))
    ]
    # An index that extends load_data has both; the one with folders is DeepProfiler's.
    full = {channel_key(column) for column in known if column.startswith("path_")}
    known = [c for c in known if c.startswith("path_") or channel_key(c) not in full]
    return find_channels(channels, known, str(path))


class _Sites:
    """Reads sites; a compressed one must be 8 bit."""

    def __init__(self, files: Files, *, eight_bit: bool) -> None:
        self._files, self._eight_bit = files, eight_bit

    def read(self, row: int) -> np.ndarray:
        """All channels of a site, (C, H, W).

        Raises:
            InputError: A file is missing or damaged, or is not what it should be.
        """
        image = self._files.read(row)
        if self._eight_bit and image.dtype != np.uint8:
            raise InputError(
                f"{self._files.name(row)}: {image.dtype}, compressed images are 8 bit",
                fix="run DeepProfiler's prepare again, or read raw images",
            )
        return image
