"""What is in each well, joined onto a table of images: many images to one row of the map."""

from __future__ import annotations

import pandas as pd

from evenfield.data.names import as_text, is_well, normalise_well
from evenfield.data.roles import some
from evenfield.errors import InputError


def join_platemap(
    table: pd.DataFrame, platemap: pd.DataFrame, name: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Add a plate map's columns; no row is dropped or multiplied.

    Joined on `Metadata_Well`, and on `Metadata_Plate` and `Metadata_Source` where the map has them.

    Args:
        table: One row per image, with `Metadata_Plate` and `Metadata_Well`.
        platemap: One row per well.
        name: The map's file, for messages.

    Returns:
        The table, and a note on images whose well is not in the map.

    Raises:
        InputError: The map has no wells, repeats one, or both have a column of one name.
    """
    for part, what in ((table, "the table of images"), (platemap, name)):
        if "Metadata_Well" not in part:
            raise InputError(
                f"{what} has no column of wells", fix="name it Metadata_Well or well_position"
            )
    units = ("Metadata_Source", "Metadata_Plate")
    keys = [key for key in units if key in platemap and key in table] + ["Metadata_Well"]
    both = sorted(set(table.columns) & set(platemap.columns) - set(keys))
    if both:
        raise InputError(
            f"{', '.join(both)} is in the table and in {name}", fix="rename or drop it in one"
        )
    left, right = _keys(table, keys), _keys(platemap, keys)
    repeated = right[right.duplicated(keep=False)]
    if len(repeated):
        wells = ["/".join(row) for row in repeated.drop_duplicates().itertuples(index=False)]
        raise InputError(
            f"{name} repeats {len(wells)} wells: {some(wells)}", fix="give each well one row"
        )
    rows = pd.MultiIndex.from_frame(right).get_indexer(pd.MultiIndex.from_frame(left))
    joined = table.copy()
    for column in platemap.columns:
        if column not in keys:
            values = platemap[column].to_numpy(dtype=object)
            found = values[rows.clip(min=0)]
            found[rows < 0] = ""
            joined[column] = found
    without = left[rows < 0].drop_duplicates()
    if not len(without):
        return joined, ()
    wells = ["/".join(row) for row in without.itertuples(index=False)]
    note = (
        f"{int((rows < 0).sum())} images of {len(wells)} wells found no row in {name} and have no "
        f"treatment: {some(wells)}"
    )
    return joined, (note,)


def _keys(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    columns = {key: as_text(table[key]) for key in keys}
    columns["Metadata_Well"] = [
        normalise_well(well) if is_well(well) else well for well in columns["Metadata_Well"]
    ]
    return pd.DataFrame(columns, dtype=object)
