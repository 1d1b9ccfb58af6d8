"""Any table that names image files: a column per channel, a filename template, or load_data.csv.

Forms of the field: CellProfiler's load_data (FileName_Orig / PathName_Orig, the Gallery's
URL_Orig), DeepProfiler's index.csv (one path column per channel), one multi-channel file a field.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from evenfield.data.load_data import locations, named_channels
from evenfield.data.names import as_text, has_controls
from evenfield.data.platemap import join_platemap
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

_PREFIXES = ("Image_Metadata_", "Metadata_", "metadata_", "meta_", "")
_KNOWN = {
    "source": "Source", "batch": "Batch", "plate": "Plate", "well": "Well",
    "well_position": "Well", "site": "Site", "field": "Site", "object": "Object",
    "compound": "Compound", "concentration": "Concentration", "treatment": "Treatment",
    "label": "Label", "controltype": "ControlType", "celltype": "CellType",
    "cell_type": "CellType",
}  # fmt: skip
_BUCKET = re.compile(r"s3://[^/]+/")


@SOURCES.register("table")
class Table(Reader):
    """A CSV, TSV or Parquet file with one row per field, and image files (TIFF, PNG)."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Reader.Config):
        """The settings of the reader.

        Attributes:
            table: One row per field, with at least plate and well.
            root: Folder of the images; none = the table's folder.
            channels: Names of the channels, in the order to store them; none = all that a
                load_data table names.
            columns: Columns that name the image files: one per channel, or one for a file that
                holds all channels; none = found by the channels' names.
            template: File name with columns in braces, such as
                `{Metadata_Plate}/{Metadata_Well}_s{Metadata_Site}_{channel}.tif`; without
                `{channel}` a file holds all channels.
            tokens: What stands for `{channel}` in file names, one per channel; none = their names.
            planes: Names of the planes of a file with all channels, in its order; none = the
                channels.
            rename: Columns to rename, each as `old=new`.
            platemap: A table of wells (and plates) to treatments that is joined on.
            negcon: Compounds or treatments that are negative controls, where no column says so.
            missing: What to do with fields whose files are missing: `error`, or `skip` and say so.
            pixel_size_um: Side of a pixel of the files in micrometres, where known.
            process: What is done to each field.
        """

        table: Path
        root: Path | None = None
        channels: tuple[str, ...] = ()
        columns: tuple[str, ...] = ()
        template: str = ""
        tokens: tuple[str, ...] = ()
        planes: tuple[str, ...] = ()
        rename: tuple[str, ...] = ()
        platemap: Path | None = None
        negcon: tuple[str, ...] = ("DMSO",)
        missing: Missing = "error"
        pixel_size_um: float | None = None
        process: Process = field(default_factory=Process)

    config: Config

    def listing(self) -> Listing:
        """The rows of the table and their files."""
        config = self.config
        table = canonical(_rename(read_table(config.table), config.rename))
        notes: tuple[str, ...] = ()
        if config.platemap is not None:
            platemap = canonical(_rename(read_table(config.platemap), config.rename))
            table, notes = join_platemap(table, platemap, str(config.platemap))
        if not has_controls(table):
            table["Metadata_ControlType"] = _controls(table, config.negcon)
        channels = config.channels or tuple(named_channels(table))
        if not channels:
            raise InputError(
                "the channels are not named", fix="give `channels`, in the order to store them"
            )
        files = self._files(table, channels)
        table, files, lost = without_missing(table, files, config.missing)
        return Listing(
            manifest=table,
            channels=channels,
            read=files.read,
            name=files.name,
            process=config.process,
            pixel_size_um=config.pixel_size_um,
            notes=notes + lost,
        )

    def _files(self, table: pd.DataFrame, channels: tuple[str, ...]) -> Files:
        config = self.config
        if config.template:
            names, single = self._from_template(table, channels)
        elif config.columns:
            single = len(config.columns) == 1 and len(channels) > 1
            if not single and len(config.columns) != len(channels):
                raise InputError(
                    f"{len(config.columns)} columns of files for {len(channels)} channels",
                    fix="name one column per channel, or one for files that hold all channels",
                )
            names = [_column(table, column) for column in config.columns]
        else:
            names, single = [_load_data(table, channel) for channel in channels], False
        root = config.root if config.root is not None else config.table.parent
        rows = list(zip(*[[root / name for name in column] for column in names], strict=True))
        planes = config.planes or channels
        if not single and not config.planes:
            return Files(rows)
        unknown = sorted(set(channels) - set(planes))
        if unknown:
            raise InputError(
                f"the files have no channel {', '.join(unknown)}",
                fix=f"choose from {', '.join(planes)}",
            )
        return Files(rows, ([planes.index(channel) for channel in channels], len(planes)))

    def _from_template(
        self, table: pd.DataFrame, channels: tuple[str, ...]
    ) -> tuple[list[list[str]], bool]:
        template, tokens = self.config.template, self.config.tokens or channels
        wanted = {name for _, name, _, _ in string.Formatter().parse(template) if name}
        for column in sorted(wanted - {"channel"}):
            _column(table, column)
        if len(tokens) != len(channels):
            raise InputError(
                f"{len(tokens)} tokens for {len(channels)} channels", fix="give one per channel"
            )
        text = {column: as_text(table[column]) for column in wanted - {"channel"}}
        single = "channel" not in wanted and len(channels) > 1
        return [
            [
                template.format(**{c: text[c][row] for c in text}, channel=token)
                for row in range(len(table))
            ]
            for token in (tokens[:1] if single else tokens)
        ], single


def canonical(table: pd.DataFrame) -> pd.DataFrame:
    """Known columns under the field's names: `Image_Metadata_Plate`, `meta_plate`, `Plate`.

    A column that is there already under its right name is never replaced.
    """
    names: dict[str, str] = {}
    for column in map(str, table.columns):
        prefix = next(prefix for prefix in _PREFIXES if column.startswith(prefix))
        bare = column[len(prefix) :]
        known = _KNOWN.get(bare.lower())
        new = f"Metadata_{known or bare}" if known or prefix else column
        if new not in table.columns and new not in names.values():
            names[column] = new
    return table.rename(columns=names)


def _rename(table: pd.DataFrame, rules: tuple[str, ...]) -> pd.DataFrame:
    pairs = dict(rule.split("=", 1) for rule in rules if "=" in rule)
    if len(pairs) != len(rules):
        raise InputError(f"rename {' '.join(rules)} is not understood", fix="write old=new")
    return table.rename(columns=pairs)


def _column(table: pd.DataFrame, column: str) -> list[str]:
    if column not in table:
        raise InputError(
            f"the table has no column {column}",
            fix=f"choose from {', '.join(map(str, table.columns))}",
        )
    return as_text(table[column])


def _load_data(table: pd.DataFrame, channel: str) -> list[str]:
    """The files of a channel as load_data names them, or as its own column does."""
    found = locations(table, channel)
    if found is not None:
        # A copy of a bucket keeps its folders below `root`.
        return [_BUCKET.sub("", text).removeprefix("file://") for text in found]
    if channel in table:
        return as_text(table[channel])
    raise InputError(
        f"no column names the files of channel {channel}",
        fix=f"known channels: {', '.join(named_channels(table)) or 'none'}; "
        "or give `columns` or `template`",
    )


def _controls(table: pd.DataFrame, negcon: tuple[str, ...]) -> np.ndarray:
    words = {word.lower() for word in negcon}
    is_control = np.zeros(len(table), bool)
    for column in ("Metadata_Compound", "Metadata_Treatment"):
        if column in table:
            is_control |= np.array([text.lower() in words for text in as_text(table[column])])
    return np.where(is_control, "negcon", "trt").astype(object)
