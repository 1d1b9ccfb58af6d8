"""RxRx1: 1,108 siRNAs and 31 controls on four cell types, 51 experiments, six channels.

Sypetkowski et al., 2023 (arXiv 2301.05768); data: Recursion, CC BY-NC-SA 4.0. Two layouts: the
official one (metadata.csv, images/EXPERIMENT/PlateP/WELL_sS_wC.png) and Kaggle's (train.csv,
train_controls.csv, test.csv, test_controls.csv; train|test/EXPERIMENT/...).

An experiment is the batch, EXPERIMENT_P the plate. The label is the siRNA's number: 0 to 1107
treatments, 1108 to 1137 positive controls (classes, too); 1138, the untreated well, is the negative
control. Treatments travel in the same four groups of 277 through all experiments, one group a
plate: `Metadata_Group`. HUVEC-18 repeats the layout of RPE-03, so its labels are known to whoever
has trained on that one; it is left out by default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from evenfield.data.decode import read_image
from evenfield.data.process import Process
from evenfield.data.roles import some
from evenfield.data.rxrx1_tables import (
    check_sizes,
    check_tables,
    kaggle_table,
    official_table,
    treatment_groups,
)
from evenfield.data.sources.base import SOURCES, Listing, Reader
from evenfield.errors import InputError

CHANNELS = ("DNA", "ER", "Actin", "RNA", "Mito", "Golgi")
LEAK = "HUVEC-18"
SIDE = 512


@SOURCES.register("rxrx1")
class RxRx1(Reader):
    """The six-channel images of RxRx1, as Recursion or Kaggle lays them out."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Reader.Config):
        """The settings of the reader.

        Attributes:
            folder: The folder that holds `images` (official), or `train` and `test` (Kaggle).
            tables: Folder of metadata.csv, or of Kaggle's four tables; none = `folder`.
            channels: Names of the channels, in the order to store them.
            sites: Which sites of a well: `each` a row of its own, only `1` or only `2`, or `join`:
                one row a well, its sites side by side.
            subset: `all`, or `present`: only fields of which at least one file is there.
            missing: What to do with fields that lack channels: `error`, `skip` them and say so, or
                `zero`: store 0, say so, and name them in Metadata_MissingChannels.
            negative_is_class: Whether untreated wells are a class (1138), as RxRx1-WILDS counts
                them, or negative controls without a label.
            exclude_leak: Whether HUVEC-18, whose layout repeats RPE-03's, is left out.
            check_sizes: Whether every count of the data set must be met; off for a part of it.
            process: What is done to each field.
        """

        folder: Path
        tables: Path | None = None
        channels: tuple[str, ...] = CHANNELS
        sites: Literal["each", "1", "2", "join"] = "each"
        subset: Literal["all", "present"] = "all"
        missing: Literal["error", "skip", "zero"] = "error"
        negative_is_class: bool = False
        exclude_leak: bool = True
        check_sizes: bool = True
        process: Process = field(default_factory=Process)

        def __post_init__(self) -> None:
            unknown = sorted(set(self.channels) - set(CHANNELS))
            if unknown or not self.channels:
                raise InputError(
                    f"RxRx1 has no channel {', '.join(unknown)}" if unknown else "no channel named",
                    fix=f"choose from {', '.join(CHANNELS)}",
                )

    config: Config

    def listing(self) -> Listing:
        """The sites or wells of the tables, in their order."""
        config = self.config
        table = self._table()
        check_tables(table)
        if config.check_sizes:
            check_sizes(table)
        table["group"] = treatment_groups(table)
        if config.subset == "present":
            table = _with_folders(table, config.folder)
        table, stems = _sites(table, config.sites)
        tokens = tuple(f"w{CHANNELS.index(name) + 1}" for name in config.channels)
        fields = _Fields(stems, tokens, SIDE if config.check_sizes else None)
        manifest = _manifest(table, config.negative_is_class)
        notes: list[str] = []
        manifest, fields = self._kept(manifest, fields, notes)
        return Listing(
            manifest=manifest,
            channels=config.channels,
            read=fields.read,
            name=fields.name,
            process=config.process,
            may_be_empty=fields.absent,
            provenance={"data": "RxRx1", "groups": "Metadata_CellType"},
            notes=tuple(notes),
        )

    def _table(self) -> pd.DataFrame:
        """One row a site, with the folder of its plates."""
        images = self.config.folder
        tables = self.config.tables if self.config.tables is not None else images
        if (tables / "metadata.csv").is_file():
            root = images / "images" if (images / "images").is_dir() else images
            table = official_table(tables)
            return table.assign(folder=f"{root}/" + table["experiment"])
        if (tables / "train.csv").is_file():
            root = images if (images / "train").is_dir() else images / "images"
            table = kaggle_table(tables)
            return table.assign(folder=f"{root}/" + table["dataset"] + "/" + table["experiment"])
        raise InputError(
            f"{tables} holds neither metadata.csv nor train.csv",
            fix="give the folder of RxRx1's tables as `tables`",
        )

    def _kept(
        self, manifest: pd.DataFrame, fields: _Fields, notes: list[str]
    ) -> tuple[pd.DataFrame, _Fields]:
        """The rows that `subset`, `exclude_leak` and `missing` keep; what is left out is noted."""
        config = self.config
        keep = np.ones(len(manifest), bool)
        there = None
        if config.subset == "present" or config.missing != "error":
            there = fields.there()
            if config.subset == "present":
                keep &= there.any(1)
        leak = keep & (manifest["Metadata_Batch"] == LEAK).to_numpy()
        if config.exclude_leak and leak.any():
            keep &= ~leak
            notes.append(
                f"{LEAK} is left out ({int(leak.sum())} images): its layout is that of RPE-03 with "
                "the plates shifted by one (exclude_leak=False keeps it)"
            )
        if there is not None and config.missing != "error":
            lack = keep & ~there.all(1)
            if lack.any():
                notes.append(self._lacking(fields, there, keep, lack))
            if config.missing == "skip":
                keep &= ~lack
            else:
                names = np.array(config.channels, dtype=object)
                lost = ["+".join(names[~row]) for row in there]
                manifest = manifest.assign(Metadata_MissingChannels=np.array(lost, dtype=object))
        rows = np.flatnonzero(keep)
        chosen = fields.choose(rows, there if config.missing == "zero" else None)
        return manifest.iloc[rows].reset_index(drop=True), chosen

    def _lacking(
        self, fields: _Fields, there: np.ndarray, keep: np.ndarray, lack: np.ndarray
    ) -> str:
        counts = zip(self.config.channels, (~there[lack]).sum(0), strict=True)
        listed = ", ".join(f"{channel} {num}" for channel, num in counts if num)
        text = f"{int(lack.sum())} of {int(keep.sum())} fields lack channels ({listed}): "
        if self.config.missing == "skip":
            paths = [Path(fields.name(int(row))) for row in np.flatnonzero(lack)]
            names = ["/".join(path.parts[-3:]) for path in paths]
            return f"{text}left out, by their first file: {some(names)}"
        return (
            f"{text}stored as 0; statistics of plate and data set count these zeros, so normalise "
            "each image by itself, or name fewer channels"
        )


class _Fields:
    """The files of each row, named when they are asked for (750,000 paths cost seconds).

    Args:
        stems: What the files of each row begin with, one for each site that the row shows.
        tokens: What they end with, one a channel.
        side: Height and width that every image must have, in pixels; none = any.
        lacks: Channels of each row that are read as 0.
    """

    def __init__(
        self,
        stems: list[tuple[str, ...]],
        tokens: tuple[str, ...],
        side: int | None,
        lacks: list[tuple[int, ...]] | None = None,
    ) -> None:
        self._stems, self._tokens, self._side, self._lacks = stems, tokens, side, lacks

    def name(self, row: int) -> str:
        """The row's first file."""
        return f"{self._stems[row][0]}_{self._tokens[0]}.png"

    def absent(self, row: int) -> tuple[int, ...]:
        """Numbers of the channels that are read as 0."""
        return () if self._lacks is None else self._lacks[row]

    def read(self, row: int) -> np.ndarray:
        """All channels of the row, (C, H, W), sites side by side.

        Raises:
            InputError: A file is missing or damaged, or is no 8-bit grey image of the right size.
        """
        sites = [
            {
                channel: self._plane(Path(f"{stem}_{token}.png"))
                for channel, token in enumerate(self._tokens)
                if channel not in self.absent(row)
            }
            for stem in self._stems[row]
        ]
        shapes = {plane.shape for site in sites for plane in site.values()}
        if len(shapes) != 1:
            raise InputError(
                f"{self.name(row)}: its channels have {len(shapes)} sizes",
                fix="give complete images of one size, or let `missing` skip this field",
            )
        blank = np.zeros(shapes.pop(), np.uint8)
        channels = range(len(self._tokens))
        return np.concatenate(
            [np.stack([site.get(channel, blank) for channel in channels]) for site in sites], axis=2
        )

    def _plane(self, path: Path) -> np.ndarray:
        plane: np.ndarray = read_image(path, num_channels=1)[0]
        size = plane.shape if self._side is None else (self._side, self._side)
        if plane.dtype != np.uint8 or plane.shape != size:
            found = f"{plane.shape[0]} x {plane.shape[1]} {plane.dtype}"
            raise InputError(
                f"{path}: {found}, not {size[0]} x {size[1]} uint8",
                fix="copy the file again; for other sizes set check_sizes to False",
            )
        return plane

    def there(self) -> np.ndarray:
        """(n, c) bool: which channels have their files, at every site that the row shows."""
        found: dict[str, set[str]] = {}
        answer = np.ones((len(self._stems), len(self._tokens)), bool)
        for row, stems in enumerate(self._stems):
            for stem in stems:
                folder, _, start = stem.rpartition("/")
                if folder not in found:
                    path = Path(folder)
                    found[folder] = {p.name for p in path.iterdir()} if path.is_dir() else set()
                for channel, token in enumerate(self._tokens):
                    answer[row, channel] &= f"{start}_{token}.png" in found[folder]
        return answer

    def choose(self, rows: np.ndarray, there: np.ndarray | None) -> _Fields:
        """Some rows; given which channels are `there`, the others are read as 0."""
        stems = [self._stems[row] for row in rows]
        lacks = None
        if there is not None:
            lacks = [tuple(np.flatnonzero(~there[row]).tolist()) for row in rows]
        return _Fields(stems, self._tokens, self._side, lacks)


def _with_folders(table: pd.DataFrame, images: Path) -> pd.DataFrame:
    """The rows whose plate has a folder: most of 125,000 rows need no look at their files."""
    plate = table["folder"] + "/Plate" + table["plate"]
    there = {name for name in plate.unique() if Path(name).is_dir()}
    if not there:
        raise InputError(
            f"no image of RxRx1 lies in {images} (the first plate that is missing: {plate[0]})",
            fix="give the folder that holds `images`, or `train` and `test`",
        )
    return table[plate.isin(there)].reset_index(drop=True)


def _sites(table: pd.DataFrame, sites: str) -> tuple[pd.DataFrame, list[tuple[str, ...]]]:
    """The rows that `sites` asks for, and what the files of each begin with."""
    if sites in ("1", "2"):
        table = table[table["site"] == sites].reset_index(drop=True)
    elif sites == "join":
        repeated = table.duplicated(["experiment", "plate", "well"])
        table = table[~repeated].reset_index(drop=True).assign(site="1+2")
    well = table["folder"] + "/Plate" + table["plate"] + "/" + table["well"]
    if sites == "join":
        return table, list(zip(well + "_s1", well + "_s2", strict=True))
    return table, [(stem,) for stem in well + "_s" + table["site"]]


def _manifest(table: pd.DataFrame, negative_is_class: bool) -> pd.DataFrame:
    control = table["kind"]
    if negative_is_class:
        control = control.where(control != "negcon", "trt")
    columns = {
        "Metadata_Source": "rxrx1",
        "Metadata_Batch": table["experiment"],
        "Metadata_Plate": table["experiment"] + "_" + table["plate"],
        "Metadata_Well": table["well"],
        "Metadata_Site": table["site"],
        "Metadata_Compound": table["sirna_id"],
        "Metadata_Label": table["sirna_id"],
        "Metadata_ControlType": control,
        "Metadata_CellType": table["cell_type"],
        "Metadata_Group": table["group"],
        "Metadata_Split": table["dataset"],
    }
    if "sirna" in table:
        columns["Metadata_siRNA"] = table["sirna"]
    return pd.DataFrame(columns)
