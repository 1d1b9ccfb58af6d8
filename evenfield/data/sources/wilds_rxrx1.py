"""RxRx1-WILDS v1.0: which of 1,139 siRNAs, on experiments that were never seen.

Koh et al., ICML 2021 (arXiv 2012.07421, appendix E.3); data: Recursion, CC BY-NC-SA 4.0. Pictures
are the centre 256 pixels of RxRx1's first three channels.

`Metadata_Split` follows the official loader: 33 experiments train on site 1 (`train`) and are
judged on site 2 (`id_test`: other images of the same wells), 4 select (`val`), 14 judge (`test`).
All 1,139 classes count, the untreated wells among them, so these are `trt` here and no adapter gets
them as controls (`negative_is_class`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from evenfield.data.process import Process
from evenfield.data.sources.base import SOURCES, Listing, Reader
from evenfield.data.wilds import SPLIT, Pictures, demand, demand_counts, open_release

CHANNELS = ("DNA", "ER", "Actin")
COUNTS = {"train": 40612, "val": 9854, "test": 34432, "id_test": 40612}
EXPERIMENTS = {"train": 33, "val": 4, "test": 14}
NUM_CLASSES, NUM_TREATMENTS, NEGATIVE = 1139, 1108, 1138
_COLUMNS = ("dataset", "experiment", "plate", "well", "site", "cell_type", "sirna_id")


@SOURCES.register("wilds-rxrx1")
class WildsRxRx1(Reader):
    """The folder `rxrx1_v1.0` of the WILDS package: metadata.csv and one RGB PNG a site."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Reader.Config):
        """The settings of the reader.

        Attributes:
            folder: The folder that holds `rxrx1_v1.0`, or that folder itself.
            negative_is_class: Whether untreated wells are a class (1138), as in the official
                metric, or negative controls without a label.
            check_sizes: Whether every count of the release must be met; off for a part of it.
            process: What is done to each picture.
        """

        folder: Path
        negative_is_class: bool = True
        check_sizes: bool = True
        process: Process = field(default_factory=Process)

    config: Config

    def listing(self) -> Listing:
        """The rows of metadata.csv, in its order."""
        config = self.config
        root, table = open_release(config.folder, "rxrx1", _COLUMNS)
        unknown = sorted(set(table["dataset"]) - set(EXPERIMENTS))
        demand(not unknown, f"dataset is {unknown[0] if unknown else ''!r}, not train, val or test")
        of_sites = sorted(set(table["site"]) - {"1", "2"})
        demand(not of_sites, f"site is {of_sites[0] if of_sites else ''!r}, not 1 or 2")
        held = (table["dataset"] == "train") & (table["site"] == "2")
        split = table["dataset"].where(~held, "id_test")
        _check(table)
        if config.check_sizes:
            _check_sizes(table, split)
        files = (
            "images/" + table["experiment"] + "/Plate" + table["plate"] + "/" + table["well"]
            + "_s" + table["site"] + ".png"
        )  # fmt: skip
        pictures = Pictures(root, files, 256 if config.check_sizes else None)
        return Listing(
            manifest=_manifest(table, split, config.negative_is_class),
            channels=CHANNELS,
            read=pictures.read,
            name=pictures.name,
            process=config.process,
            may_be_empty=lambda _: range(len(CHANNELS)),  # the official metric counts every picture
            provenance={
                "data": "RxRx1-WILDS v1.0",
                "dataset": "rxrx1",
                "groups": "Metadata_CellType",
            },
        )


def _manifest(table: pd.DataFrame, split: pd.Series, negative_is_class: bool) -> pd.DataFrame:
    sirna = table["sirna_id"].astype(int)
    negative = "trt" if negative_is_class else "negcon"
    control = np.select([sirna == NEGATIVE, sirna >= NUM_TREATMENTS], [negative, "poscon"], "trt")
    return pd.DataFrame(
        {
            "Metadata_Source": "rxrx1",
            "Metadata_Batch": table["experiment"],
            "Metadata_Plate": table["experiment"] + "_" + table["plate"],
            "Metadata_Well": table["well"],
            "Metadata_Site": table["site"],
            "Metadata_Compound": table["sirna_id"],
            "Metadata_Label": table["sirna_id"],
            "Metadata_ControlType": control.astype(object),
            "Metadata_CellType": table["cell_type"],
            SPLIT: split,
        }
    )


def _check(table: pd.DataFrame) -> None:
    numbers = table["sirna_id"].str.fullmatch(r"\d{1,4}")
    demand(bool(numbers.all()), f"sirna_id is {table['sirna_id'][~numbers].head(1).tolist()}")
    largest = int(table["sirna_id"].astype(int).max())
    demand(largest < NUM_CLASSES, f"sirna_id reaches {largest}, the classes end at {NEGATIVE}")
    parts = table[["dataset", "experiment"]].drop_duplicates()["experiment"]
    twice = parts[parts.duplicated()].tolist()
    demand(not twice, f"{twice[0] if twice else ''} lies in two of train, val and test")
    named = table["experiment"].str.split("-").str[0].str.upper()
    wrong = table["experiment"][named != table["cell_type"].str.upper()].tolist()
    demand(not wrong, f"the cell type of {wrong[0] if wrong else ''} is not the one in its name")


def _check_sizes(table: pd.DataFrame, split: pd.Series) -> None:
    demand_counts(split, COUNTS)
    found = table.groupby("dataset")["experiment"].nunique()
    for name, count in EXPERIMENTS.items():
        demand(found.get(name) == count, f"{name} has {found.get(name)} experiments, not {count}")
    num = table["sirna_id"].nunique()
    demand(num == NUM_CLASSES, f"there are {num} siRNAs, not {NUM_CLASSES}")
