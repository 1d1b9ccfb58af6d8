"""BBBC021: MCF-7 cells, 113 compounds, 12 mechanisms, 55 plates in 10 weeks, DMSO on every plate.

Caie et al., Mol. Cancer Ther. 2010; mechanisms of 103 treatments: Ljosa et al., J. Biomol. Screen.
2013. Images: BBBC021v1, Broad Bioimage Benchmark Collection (Ljosa et al., Nat. Methods 2012);
copyright AstraZeneca, no open licence stated: local use only.

A week is the experimental batch. DMSO is the negative control; taxol, on every plate and in every
week, the positive one (its mechanism stays its label).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from evenfield.data.process import Process
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
from evenfield.seeds import numpy_generator

CHANNELS = ("DAPI", "Tubulin", "Actin")
_ARCHIVE_PLANES = ("DAPI", "Actin", "Tubulin")
_ARCHIVE_COLUMNS = {
    "week": "Metadata_Batch",
    "plate": "Metadata_Plate",
    "well": "Metadata_Well",
    "site": "Metadata_Site",
    "cell_in_image": "Metadata_Object",
    "replicate": "Metadata_Replicate",
    "compound": "Metadata_Compound",
    "concentration": "Metadata_Concentration",
    "moa": "Metadata_Label",
}
_IMAGES, _MOA = "BBBC021_v1_image.csv", "BBBC021_v1_moa.csv"
_SITE = re.compile(r"_s(\d+)_w1")
_COMMON = {"Metadata_Source": "bbbc021", "Metadata_CellType": "MCF7"}


@SOURCES.register("bbbc021")
class BBBC021(Reader):
    """The official tables with the TIFF tree, or an archive of single-cell crops."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Reader.Config):
        """The settings of the reader.

        Attributes:
            folder: The TIFF tree (`Week1/Week1_22123/...`, or the files in one folder), or a
                folder with `crops.npz` and `metadata.csv`.
            tables: Folder of BBBC021_v1_image.csv and BBBC021_v1_moa.csv (also .gz); none =
                `folder`.
            subset: `all`, or `present`: only fields of which at least one file is there (when
                part of the plates was downloaded).
            missing: What to do with fields whose files are missing: `error`, or `skip` and say so.
            task: Of the crop archive: `mechanisms` (every crop; DMSO are the controls), or `taxol`
                (taxol against DMSO: the DMSO crops of each week are split by well, and so by field,
                into controls, which have no label, and a scored half with the label DMSO).
            process: What is done to each field.
        """

        folder: Path
        tables: Path | None = None
        subset: Literal["all", "present"] = "all"
        missing: Missing = "error"
        task: Literal["mechanisms", "taxol"] = "mechanisms"
        process: Process = field(default_factory=Process)

    config: Config

    def listing(self) -> Listing:
        """The crops of the archive, or the fields of the official tables."""
        if (self.config.folder / "crops.npz").is_file():
            return self._crops()
        return self._fields()

    def _crops(self) -> Listing:
        folder = self.config.folder
        table = read_table(folder / "metadata.csv")
        wanted = ["week", "plate", "well", "site", "cell_in_image", "compound", "moa"]
        if lost := [column for column in wanted if column not in table]:
            raise InputError(
                f"{folder / 'metadata.csv'} lacks {', '.join(lost)}", fix="use the original file"
            )
        archive = _Archive(folder / "crops.npz", len(table))
        table = table.rename(columns=_ARCHIVE_COLUMNS)
        manifest = _with_controls(table.filter(regex="^Metadata_"))
        rows = np.arange(len(manifest))
        if self.config.task == "taxol":
            manifest, rows = _taxol_task(manifest)
        return Listing(
            manifest=manifest,
            channels=CHANNELS,
            read=lambda row: archive.read(int(rows[row])),
            name=lambda row: f"crop {rows[row]} of {archive.path}",
            process=self.config.process,
            provenance={"data": "BBBC021v1, single-cell crops"},
        )

    def _fields(self) -> Listing:
        config = self.config
        tables = config.tables if config.tables is not None else config.folder
        table = _official(read_table(_table(tables, _IMAGES)), read_table(_table(tables, _MOA)))
        files = _locate(config.folder, table)
        if config.subset == "present":
            lost = files.missing()
            part = [row for row in range(len(table)) if len(lost.get(row, ())) < len(CHANNELS)]
            if not part:
                raise InputError(
                    f"no file of BBBC021 lies in {config.folder}",
                    fix="give the folder that holds Week1_22123 and the like",
                )
            table, files = table.iloc[part].reset_index(drop=True), files.choose(part)
        table, files, notes = without_missing(table, files, config.missing)
        return Listing(
            manifest=table.filter(regex="^Metadata_"),
            channels=CHANNELS,
            read=files.read,
            name=files.name,
            process=config.process,
            provenance={"data": "BBBC021v1, Broad Bioimage Benchmark Collection"},
            notes=notes,
        )


def _taxol_task(manifest: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Taxol and DMSO crops only; a DMSO crop is a control or is scored, by its well, never both.

    Returns:
        The manifest, and which crops of the archive its rows are.
    """
    rows = np.flatnonzero(manifest["Metadata_Compound"].isin(["taxol", "DMSO"]))
    chosen = manifest.iloc[rows].reset_index(drop=True)
    dmso = chosen["Metadata_Compound"] == "DMSO"
    well = chosen["Metadata_Plate"] + "/" + chosen["Metadata_Well"]
    control = np.zeros(len(chosen), dtype=bool)
    for week, wells in well[dmso].groupby(chosen["Metadata_Batch"][dmso]):
        order = numpy_generator(0, "taxol", week).permutation(np.unique(wells))
        control |= (dmso & well.isin(order[::2])).to_numpy()
    label = np.where(dmso, "DMSO", "taxol").astype(object)
    label[control] = ""
    kind = np.where(control, "negcon", "trt").astype(object)
    return chosen.assign(Metadata_Label=label, Metadata_ControlType=kind), rows


class _Archive:
    """The crops of an .npz, decompressed on the first read (59 MB for 2,141 crops)."""

    def __init__(self, path: Path, num: int) -> None:
        self.path, self._num = path, num
        _ = self._crops  # before threads ask for it

    @cached_property
    def _crops(self) -> np.ndarray:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                crops: np.ndarray = archive["X"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(
                f"{self.path} cannot be read: {error}", fix="copy the file again"
            ) from error
        if crops.ndim != 4 or crops.shape[3] != len(_ARCHIVE_PLANES) or len(crops) != self._num:
            raise InputError(
                f"{self.path} holds {crops.shape}, expected {self._num} crops (H, W, 3)",
                fix="use the metadata.csv and crops.npz of one archive",
            )
        return crops

    def read(self, row: int) -> np.ndarray:
        """A crop as it was cut, (C, H, W), its channels in the order of `CHANNELS`."""
        planes = [_ARCHIVE_PLANES.index(channel) for channel in CHANNELS]
        return np.moveaxis(self._crops[row], 2, 0)[planes]


def _table(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(
        f"there is no {name} in {folder}",
        fix="download the tables from the Broad Bioimage Benchmark Collection (BBBC021), or "
        "give their folder as `tables`",
    )


def _official(images: pd.DataFrame, moa: pd.DataFrame) -> pd.DataFrame:
    """One row per field; the mechanism by compound and concentration, many to one."""
    plate, well = "Image_Metadata_Plate_DAPI", "Image_Metadata_Well_DAPI"
    wanted = [plate, well, "Image_Metadata_Compound", "Image_Metadata_Concentration", "Replicate"]
    wanted += [f"Image_{what}Name_{name}" for what in ("File", "Path") for name in CHANNELS]
    for part, columns, name in (
        (images, wanted, _IMAGES),
        (moa, ["compound", "concentration", "moa"], _MOA),
    ):
        if lost := [column for column in columns if column not in part]:
            raise InputError(f"{name} lacks {', '.join(lost)}", fix="use the official table")
    known = dict(
        zip(zip(moa["compound"], moa["concentration"].astype(float), strict=True), moa["moa"],
            strict=True)
    )  # fmt: skip
    dose = images["Image_Metadata_Concentration"].astype(float)
    table = images.assign(
        Metadata_Batch=images[plate].str.split("_").str[0],
        Metadata_Plate=images[plate],
        Metadata_Well=images[well],
        Metadata_Site=images["Image_FileName_DAPI"].str.extract(_SITE)[0],
        Metadata_Replicate=images["Replicate"],
        Metadata_Compound=images["Image_Metadata_Compound"],
        Metadata_Concentration=dose,
        Metadata_Label=[
            known.get(pair, "")
            for pair in zip(images["Image_Metadata_Compound"], dose, strict=True)
        ],
    )
    return _with_controls(table)


def _with_controls(table: pd.DataFrame) -> pd.DataFrame:
    compound = table["Metadata_Compound"]
    control = np.select([compound == "DMSO", compound == "taxol"], ["negcon", "poscon"], "trt")
    return table.assign(Metadata_ControlType=control.astype(object), **_COMMON)


def _locate(folder: Path, table: pd.DataFrame) -> Files:
    """Each file where the official table says, or else wherever in the folder it lies."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.tif")):
        found.setdefault(path.name, path)
    columns = []
    for channel in CHANNELS:
        paths = table[f"Image_PathName_{channel}"]
        names = table[f"Image_FileName_{channel}"]
        columns.append([found.get(n, folder / p / n) for p, n in zip(paths, names, strict=True)])
    return Files(list(zip(*columns, strict=True)))
