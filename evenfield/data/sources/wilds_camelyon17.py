"""Camelyon17-WILDS v1.0: tumour or not, in a hospital that was never seen.

Koh et al., ICML 2021 (arXiv 2012.07421, appendix E.2); Bandi et al., IEEE TMI 2019. Licence CC0.

455,954 patches of 50 slides, ten from each of five hospitals. A hospital is source and batch, a
slide the plate; a patch's position stands in for its well, so that every patch is its own.

`Metadata_Split` follows the official loader, hospitals counted from 0: 0, 3 and 4 train (`train`;
a random tenth of their patches is `id_val`), 1 selects (`val`), 2 judges (`test`). The paper counts
from 1 and prints another order of the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from evenfield.data.process import Process
from evenfield.data.sources.base import SOURCES, Listing, Reader
from evenfield.data.wilds import SPLIT, Pictures, demand, demand_counts, open_release

CHANNELS = ("Red", "Green", "Blue")
COUNTS = {"train": 302436, "id_val": 33560, "val": 34904, "test": 85054}
SLIDES = {"train": 30, "id_val": 30, "val": 10, "test": 10}
VALIDATION_CENTER, TEST_CENTER = 1, 2
_COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")


@SOURCES.register("wilds-camelyon17")
class WildsCamelyon17(Reader):
    """The folder `camelyon17_v1.0` of the WILDS package: metadata.csv and one PNG a patch."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Reader.Config):
        """The settings of the reader.

        Attributes:
            folder: The folder that holds `camelyon17_v1.0`, or that folder itself.
            check_sizes: Whether every count of the release must be met; off for a part of it.
            process: What is done to each patch.
        """

        folder: Path
        check_sizes: bool = True
        process: Process = field(default_factory=Process)

    config: Config

    def listing(self) -> Listing:
        """The rows of metadata.csv, in its order."""
        config = self.config
        root, table = open_release(config.folder, "camelyon17", _COLUMNS)
        _check(table)
        center = table["center"].astype(int).to_numpy()
        split = pd.Series(
            np.select(
                [center == VALIDATION_CENTER, center == TEST_CENTER, table["split"] == "1"],
                ["val", "test", "id_val"],
                "train",
            ).astype(object)
        )
        notes: tuple[str, ...] = ()
        if config.check_sizes:
            _check_sizes(table, split)
            notes = _uneven(table["tumor"] == "1", split)
        folder = "patient_" + table["patient"] + "_node_" + table["node"]
        position = "x_" + table["x_coord"] + "_y_" + table["y_coord"]
        files = "patches/" + folder + "/patch_" + folder + "_" + position + ".png"
        pictures = Pictures(root, files, 96 if config.check_sizes else None)
        first = np.flatnonzero(~table["slide"].duplicated())
        last = np.flatnonzero(~table["slide"].duplicated(keep="last"))
        pictures.demand_files(sorted({*first.tolist(), *last.tolist()}))
        hospital = "center" + table["center"]
        return Listing(
            manifest=pd.DataFrame(
                {
                    "Metadata_Source": hospital,
                    "Metadata_Batch": hospital,
                    "Metadata_Plate": "slide" + table["slide"].str.zfill(2),
                    "Metadata_Well": "x" + table["x_coord"] + "_y" + table["y_coord"],
                    "Metadata_Label": table["tumor"],
                    "Metadata_Patient": table["patient"],
                    "Metadata_Node": table["node"],
                    SPLIT: split,
                }
            ),
            channels=CHANNELS,
            read=pictures.read,
            name=pictures.name,
            process=config.process,
            may_be_empty=lambda _: range(len(CHANNELS)),  # the official metric counts every picture
            provenance={
                "data": "Camelyon17-WILDS v1.0",
                "dataset": "camelyon17",
                "groups": "Metadata_Plate",
            },
            notes=notes,
        )


def _check(table: pd.DataFrame) -> None:
    for column in ("node", "x_coord", "y_coord", "slide", "center"):
        whole = table[column].str.fullmatch(r"\d+")
        demand(bool(whole.all()), f"{column} is {table[column][~whole].head(1).tolist()}")
    for column in ("tumor", "split"):
        known = table[column].isin(["0", "1"])
        demand(bool(known.all()), f"{column} is {table[column][~known].head(1).tolist()}")
    bare = table["patient"][~table["patient"].str.fullmatch(r"\d{3}")].tolist()
    demand(not bare, f"patient {bare[0] if bare else ''!r} has lost its zeros (it is text: '004')")
    slide, center = table["slide"].astype(int), table["center"].astype(int)
    wrong = table["slide"][slide // 10 != center].tolist()
    demand(not wrong, f"slide {wrong[0] if wrong else ''} is not of the hospital slide // 10")


def _check_sizes(table: pd.DataFrame, split: pd.Series) -> None:
    demand_counts(split, COUNTS)
    found = table["slide"].groupby(split).nunique()
    for name, count in SLIDES.items():
        demand(found[name] == count, f"the split {name} has {found[name]} slides, not {count}")


def _uneven(tumour: pd.Series, split: pd.Series) -> tuple[str, ...]:
    """Splits whose share of tumour is not a half, within 2 %."""
    shares = tumour.groupby(split).mean()
    return tuple(
        f"{100 * share:.1f} % of the split {name} are tumour; the release has 50 % in each"
        for name, share in shares.items()
        if abs(share - 0.5) > 0.02
    )
