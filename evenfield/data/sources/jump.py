"""JUMP-CP in the layout of the Cell Painting Gallery: cpg0016, U2OS, 13 sources, five stains.

Chandrasekaran et al., bioRxiv 2023 (cpg0016; images CC0-1.0). One row of load_data is one site; its
plate, well and perturbation come from the tables of jump-cellpainting/datasets. The source is the
laboratory (`Metadata_Source`), the batch an experiment there; either may play the role `domain`.
DMSO is the negative control, eight compounds are positive ones.

Target-2 plates have one layout: a compound is in the same well on every plate of every source, so
pairs across plates never remove what the position in the plate does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from evenfield.data.channels import find_channels
from evenfield.data.fields import TreeFields
from evenfield.data.jump_tables import (
    BATCH,
    PLATE,
    SOURCE,
    WELL,
    JumpTables,
    check_target2,
    join_tables,
    read_jump_tables,
    select_plates,
)
from evenfield.data.load_data import below, locations, named_channels
from evenfield.data.mechanisms import join_mechanisms
from evenfield.data.names import as_text
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
from evenfield.data.tree import Tree
from evenfield.errors import InputError

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
_LOAD_DATA = (
    "load_data_with_illum.parquet",
    "load_data_with_illum.csv.gz",
    "load_data_with_illum.csv",
    "load_data.parquet",
    "load_data.csv.gz",
    "load_data.csv",
)
_SITE = "Metadata_Site"


@SOURCES.register("jump")
class Jump(Reader):
    """Plates of the Cell Painting Gallery, from a local mirror or from S3."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Reader.Config):
        """The settings of the reader.

        Attributes:
            folder: The project: a folder that holds `source_4` and the like, or an address such as
                s3://cellpainting-gallery/cpg0016-jump.
            tables: The folder `metadata` of jump-cellpainting/datasets (plate.csv.gz, well.csv.gz,
                compound.csv.gz, perturbation_control.csv, microscope_config.csv).
            plate_type: Which plates: TARGET2, COMPOUND, ...; empty = all types.
            sources: Which sources; none = all.
            batches: Which batches; none = all.
            plates: Which plates; none = all.
            channels: Names of the channels, in the order to store them.
            subset: `all`, or `present`: only plates whose load_data is there, and fields of which
                at least one file is.
            missing: What to do with fields whose files are missing: `error`, or `skip` and say so.
            replace: Beginnings of file names in load_data and what stands for them, as `old=new`;
                what comes before `source_4/images/` or BATCH/images/ needs no rule: it is replaced
                by the folder of the source.
            illumination: Divide by the published function of plate and channel where it is there
                (`present`), demand it (`require`), or leave images as they are (`off`).
            mechanisms: A table of Metadata_InChIKey (or Metadata_JCP2022) and Metadata_moa that
                gives the label; none = the compound is the label.
            check_layout: Whether Target-2 plates without 384 wells and 64 of DMSO are named.
            anonymous: Whether s3:// is read without credentials, as the Gallery allows.
            process: What is done to each field.
        """

        folder: str
        tables: Path
        plate_type: str = "TARGET2"
        sources: tuple[str, ...] = ()
        batches: tuple[str, ...] = ()
        plates: tuple[str, ...] = ()
        channels: tuple[str, ...] = CHANNELS
        subset: Literal["all", "present"] = "all"
        missing: Missing = "error"
        replace: tuple[str, ...] = ()
        illumination: Literal["present", "require", "off"] = "present"
        mechanisms: Path | None = None
        check_layout: bool = True
        anonymous: bool = True
        process: Process = field(default_factory=Process)

        def __post_init__(self) -> None:
            if self.process.illumination and self.illumination != "off":
                raise InputError(
                    "the published illumination functions and process.illumination would both be "
                    "divided by",
                    fix="set illumination to off, or process.illumination to False",
                )
            if wrong := [rule for rule in self.replace if "=" not in rule]:
                raise InputError(f"replace {some(wrong)} is not understood", fix="write old=new")

    config: Config

    def listing(self) -> Listing:
        """The sites of the chosen plates, plate after plate, in the order of load_data."""
        config = self.config
        tree = Tree(config.folder, anonymous=config.anonymous)
        tables = read_jump_tables(config.tables)
        chosen = select_plates(
            tables,
            plate_type=config.plate_type,
            sources=config.sources,
            batches=config.batches,
            plates=config.plates,
        )
        sites, notes = self._sites(tree, chosen)
        sites, unknown = join_tables(sites, tables)
        notes += unknown
        if config.check_layout:
            notes += check_target2(sites)
        sites["Metadata_Label"] = sites["Metadata_Compound"]
        if config.mechanisms is not None:
            classes = read_table(config.mechanisms)
            sites["Metadata_Label"] = join_mechanisms(sites, classes, str(config.mechanisms))
        files = [sites.pop(f"file {number}") for number in range(len(config.channels))]
        lights, dark = self._lights(tree, sites)
        fields = TreeFields(tree, list(zip(*files, strict=True)), lights)
        sites, fields, lost = self._kept(sites, fields)
        sizes, doubtful = _sizes(sites, tables, config.process)
        return Listing(
            manifest=sites.assign(Metadata_CellType="U2OS"),
            channels=config.channels,
            read=fields.read,
            name=fields.name,
            process=config.process,
            pixel_size_um=sizes[0] if len(set(sizes)) == 1 else None,
            pixel_sizes=sizes.__getitem__,
            provenance={"data": "JUMP-CP cpg0016, Cell Painting Gallery, CC0-1.0"},
            notes=notes + dark + lost + doubtful,
        )

    def _sites(self, tree: Tree, chosen: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """load_data of all plates, with one column of locations a channel."""
        parts, absent = [], []
        for source, batch, plate in chosen[[SOURCE, BATCH, PLATE]].itertuples(index=False):
            folder = f"{tree.root}/{source}/workspace/load_data_csv/{batch}/{plate}"
            names = [name for name in _LOAD_DATA if tree.has(f"{folder}/{name}")]
            if names:
                path = f"{folder}/{names[0]}"
                parts.append(self._plate(tree, source, batch, plate, path))
            else:
                absent.append(f"{source}/{batch}/{plate}")
        if absent and (self.config.subset == "all" or not parts):
            raise InputError(
                f"{len(absent)} of {len(chosen)} plates have no load_data below "
                f"{tree.root}/SOURCE/workspace/load_data_csv: {some(absent)}",
                fix="copy their folders, choose plates, or set subset to present",
            )
        notes = (f"{len(absent)} of {len(chosen)} plates have no load_data and are left out: "
                 f"{some(absent)}",) if absent else ()  # fmt: skip
        return pd.concat(parts, ignore_index=True), notes

    def _plate(self, tree: Tree, source: str, batch: str, plate: str, path: str) -> pd.DataFrame:
        """A plate's load_data: its key, `file 0`, ... a channel each, and `light` for all."""
        table, root = tree.table(path), tree.root
        if lost := [column for column in (WELL, _SITE) if column not in table]:
            raise InputError(f"{path} lacks {', '.join(lost)}", fix="give CellProfiler's load_data")
        for column, name in ((SOURCE, source), (PLATE, plate)):
            if column in table and (other := set(as_text(table[column])) - {name, ""}):
                raise InputError(
                    f"{path} is about {column[9:].lower()} {some(sorted(other))}, not {name}",
                    fix="put each plate's load_data into its own folder",
                )
        # Whether load_data and the plate table name one batch is checked where they are joined.
        sites = pd.DataFrame(
            {
                SOURCE: source,
                BATCH: as_text(table[BATCH]) if BATCH in table else batch,
                PLATE: plate,
                WELL: as_text(table[WELL]),
                _SITE: as_text(table[_SITE]),
            }
        )
        rules = [rule.partition("=") for rule in self.config.replace]
        pairs = tuple((old, new) for old, _, new in rules)
        known = find_channels(self.config.channels, named_channels(table), path)
        light = []
        for number, channel in enumerate(known):
            found = locations(table, channel) or []
            sites[f"file {number}"] = [below(text, source, batch, root, pairs) for text in found]
            named = locations(table, channel, "Illum") or [""]
            light.append(
                below(named[0], source, batch, root, pairs)
                if named[0] and self.config.illumination != "off"
                else f"{root}/{source}/images/{batch}/illum/{plate}/{plate}_Illum{channel}.npy"
            )
        return sites.assign(light=pd.Series([tuple(light)] * len(sites), dtype=object))

    def _lights(
        self, tree: Tree, sites: pd.DataFrame
    ) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
        """The illumination functions of each row: one a channel, or none for the whole plate."""
        named: list[tuple[str, ...]] = sites.pop("light").tolist()
        if self.config.illumination == "off":
            return [()] * len(sites), ()
        plates = dict(zip(named, sites[SOURCE] + "/" + sites[PLATE], strict=True))
        there = {files: all(tree.has(file) for file in files) for files in plates}
        dark = [plate for files, plate in plates.items() if not there[files]]
        if dark and self.config.illumination == "require":
            raise InputError(
                f"{len(dark)} of {len(plates)} plates lack illumination functions: {some(dark)}",
                fix="copy source/images/batch/illum/plate, or set illumination to present or off",
            )
        text = f"{len(dark)} of {len(plates)} plates lack illumination functions and stay as they "
        notes = (f"{text}are: {some(dark)}",) if dark else ()
        return [files if there[files] else () for files in named], notes

    def _kept(
        self, sites: pd.DataFrame, fields: TreeFields
    ) -> tuple[pd.DataFrame, TreeFields, tuple[str, ...]]:
        if self.config.subset == "present":
            lost, num = fields.missing(), len(self.config.channels)
            part = [row for row in range(len(sites)) if len(lost.get(row, ())) < num]
            if not part:
                raise InputError(
                    f"no image of these plates lies in {self.config.folder} (the first that is "
                    f"missing: {fields.name(0)})",
                    fix="check the folder, or say with `replace` where images lie",
                )
            sites, fields = sites.iloc[part].reset_index(drop=True), fields.choose(part)
        return without_missing(sites, fields, self.config.missing)


def _sizes(
    sites: pd.DataFrame, tables: JumpTables, process: Process
) -> tuple[list[float | None], tuple[str, ...]]:
    """Side of a pixel of each row in micrometres, and a word on sources that differ."""
    sizes = [tables.pixel_size_um.get(source) for source in sites[SOURCE]]
    found = sorted({size for size in sizes if size is not None})
    if len(found) < 2 or process.pixel_size_um is not None:
        return sizes, ()
    return sizes, (
        f"pixels of these sources are {found[0]:.3f} to {found[-1]:.3f} um wide: cells differ in "
        "size by that much (process.pixel_size_um resamples them)",
    )
