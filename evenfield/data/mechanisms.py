"""Mechanisms of compounds from the Drug Repurposing Hub, joined by the first InChIKey block.

The hub's table (Corsello et al., Nat. Med. 2017) is free for non-commercial research and may not be
repackaged: only the rule is here, the table is the user's. Fourteen letters name the skeleton
without stereochemistry and salt, so a hub's free base finds a plate's hydrochloride.

CODA's list of 54 mechanisms is unpublished (Fredin Haslum et al., WACV 2024). `recon_a` is a
reconstruction: of 280 tried rules the only one on the hub of 2020-03-24 that gives 54 classes on
JUMP-Target-2, so a chance hit is possible. `recon_b` is the other one; it belongs to the hub of
2018-09-07.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evenfield.data.roles import some
from evenfield.data.sources.base import read_table
from evenfield.errors import InputError

SKELETON = 14
INCHIKEY, MOA = "Metadata_InChIKey", "Metadata_moa"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How classes are made of the hub's words.

    Attributes:
        hub: The release that it was found on.
        single: Whether compounds with several mechanisms (`a|b`) belong to no class, or `a|b` is
            one.
        fewest: Compounds that a class must have.
    """

    hub: str
    single: bool
    fewest: int = 2


RECIPES = {
    "recon_a": Recipe(hub="2020-03-24", single=True),
    "recon_b": Recipe(hub="2018-09-07", single=False),
}


def read_hub(*paths: Path) -> pd.DataFrame:
    """The hub as one table in its own order: InChIKey and moa of each sample.

    Args:
        paths: Its two files, drugs and samples (`repurposing_drugs_*.txt`,
            `repurposing_samples_*.txt`), joined by `pert_iname` in the order of the drugs; or one
            file that is joined already (lincs-cell-painting's `repurposing_info.tsv`).

    Raises:
        InputError: A file cannot be read or a column is missing.
    """
    tables = [_hub_file(path) for path in paths]
    if len(tables) == 2:
        drugs, samples = sorted(tables, key=lambda table: "moa" not in table)
        for table, wanted in ((drugs, "moa"), (samples, "InChIKey")):
            if lost := [column for column in ("pert_iname", wanted) if column not in table]:
                raise InputError(
                    f"the hub's files have no column {', '.join(lost)}",
                    fix="give drugs and samples",
                )
        table = drugs[["pert_iname", "moa"]].merge(
            samples[["pert_iname", "InChIKey"]], on="pert_iname", how="inner"
        )
    elif len(tables) == 1:
        (table,) = tables
    else:
        raise InputError(
            f"{len(tables)} files of the hub were given", fix="give drugs and samples, or one table"
        )
    if lost := [column for column in ("InChIKey", "moa") if column not in table]:
        raise InputError(f"the hub's table lacks {', '.join(lost)}", fix="give drugs and samples")
    return table


def _hub_file(path: Path) -> pd.DataFrame:
    """Tab-separated; lines that start with `!` tell about the file; not always UTF-8."""
    if path.suffix.lower() != ".txt":
        return read_table(path)
    try:
        lines = path.read_text(encoding="latin-1").splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", fix="check the path") from error
    rows = [line.rstrip("\r\n").split("\t") for line in lines if not line.startswith("!")]
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise InputError(f"{path} is no tab-separated table", fix="download the file again")
    return pd.DataFrame(rows[1:], columns=rows[0], dtype=object)


def mechanisms(hub: pd.DataFrame) -> dict[str, str]:
    """Skeleton to mechanism: the hub's first sample of that skeleton that names one.

    >>> hub = pd.DataFrame({"InChIKey": ["AAAAAAAAAAAAAA-B-N"] * 2, "moa": ["", "x inhibitor"]})
    >>> mechanisms(hub)
    {'AAAAAAAAAAAAAA': 'x inhibitor'}
    """
    known = hub[(hub["moa"] != "") & (hub["InChIKey"].str.len() >= SKELETON)]
    skeleton = known["InChIKey"].str[:SKELETON]
    first = ~skeleton.duplicated()
    return dict(zip(skeleton[first], known["moa"][first], strict=True))


def mechanism_classes(
    inchikeys: pd.Series | list[str], hub: pd.DataFrame, recipe: str = "recon_a"
) -> pd.DataFrame:
    """The class of each compound of a library under a named recipe.

    Args:
        inchikeys: The library's compounds; "" (the solvent, say) has no class, repeats count once.
        hub: What `read_hub` gave.
        recipe: A name of `RECIPES`.

    Returns:
        One row a distinct InChIKey: Metadata_InChIKey, Metadata_moa ("" for no class),
        Metadata_moa_id (-1 for no class; else by the alphabet).

    Raises:
        InputError: There is no such recipe, or no compound has a class.
    """
    if recipe not in RECIPES:
        raise InputError(f"there is no recipe {recipe!r}", fix=f"choose from {', '.join(RECIPES)}")
    rule = RECIPES[recipe]
    keys = pd.Series(sorted(set(inchikeys) - {""}), dtype=object)
    skeleton = keys.str[:SKELETON]
    words = skeleton.map(mechanisms(hub)).fillna("").astype(object)
    if rule.single:
        words = words.where(~words.str.contains("|", regex=False), "")
    counts = words[~skeleton.duplicated() & (words != "")].value_counts()
    classes = sorted(counts.index[counts >= rule.fewest])
    if not classes:
        raise InputError(
            f"no mechanism has {rule.fewest} of these {len(keys)} compounds",
            fix="check that both tables write InChIKeys, as KBPLFHHGFOOTCA-UHFFFAOYSA-N",
        )
    number = {name: code for code, name in enumerate(classes)}
    words = words.where(words.isin(classes), "")
    codes = words.map(number).fillna(-1).astype(np.int64)
    return pd.DataFrame({INCHIKEY: keys, MOA: words, "Metadata_moa_id": codes})


def join_mechanisms(table: pd.DataFrame, classes: pd.DataFrame, name: str) -> pd.Series:
    """The mechanism of each row, "" where none is known; joined by the whole InChIKey or JCP2022.

    Args:
        table: Rows with Metadata_InChIKey or Metadata_JCP2022.
        classes: One of these columns, and Metadata_moa.
        name: Of the table of classes, for messages.

    Raises:
        InputError: They share no such column, or a key has two mechanisms.
    """
    keys = [key for key in (INCHIKEY, "Metadata_JCP2022") if key in table and key in classes]
    if not keys or MOA not in classes:
        raise InputError(
            f"{name} cannot be joined",
            fix=f"give it {MOA} and {INCHIKEY} (which needs compound.csv.gz) or Metadata_JCP2022",
        )
    known = classes[classes[keys[0]] != ""][[keys[0], MOA]].drop_duplicates()
    if len(twice := known[known[keys[0]].duplicated()]):
        raise InputError(
            f"{name} gives two mechanisms to {some(twice[keys[0]].tolist())}",
            fix="keep one of each",
        )
    found: pd.Series = table[keys[0]].map(known.set_index(keys[0])[MOA])
    return found.fillna("").astype(object)
