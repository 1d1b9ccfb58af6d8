"""What is known about each well: numbers for plate maps and plate verdicts, and its picture."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from evenfield.data.screen import Screen
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.metrics.base import PROFILE_METRICS
from evenfield.metrics.kernels.questions import average_precision
from evenfield.metrics.kernels.view import Columns
from evenfield.report.aligned import WELL, Aligned
from evenfield.report.images import jpeg_uri
from evenfield.types import Profiles

KEY = list(WELL[1:])
NUM_NEIGHBOURS = 10
OWN_PLATE, RETRIEVAL, CELLS = "own-plate neighbours", "retrieval of replicates", "cells"
"""Names of values that the verdicts of plates look at, too."""
NUM_FEATURES = 4
MOST_IMAGES, MOST_BYTES, IMAGE_SIDE = 400, 1_500_000, 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A number for each well.

    Attributes:
        name: What it is.
        table: The table it was taken from; "" = the same for all.
        number: (n,) NaN where a well has none.
    """

    name: str
    table: str
    number: Float[np.ndarray, " n"]


def own_plate(table: Profiles) -> Float[np.ndarray, " n"]:
    """Share of a treated well's ten nearest treated wells that are of its own plate."""
    metric = PROFILE_METRICS["same-domain-neighbours"]
    scorer = metric(
        metric.Config(k=NUM_NEIGHBOURS),  # type: ignore[call-arg]
        columns=Columns(domain="Metadata_Plate"),
    )
    return _joined(scorer(table).items, "score", table.metadata)


def retrieval(table: Profiles) -> Float[np.ndarray, " n"]:
    """How well a treated well finds its replicates on other plates: its average precision."""
    scorer = PROFILE_METRICS["map-across-domains"](columns=Columns(domain="Metadata_Plate"))
    question, profiles, queries = scorer.question(scorer.view(table))  # type: ignore[attr-defined]
    with warnings.catch_warnings():  # who has no partner is left empty
        warnings.simplefilter("ignore", EvenfieldWarning)
        found = average_precision(profiles, question, queries=queries)
    return _joined(found, "average_precision", table.metadata)


def from_controls(table: Profiles) -> Float[np.ndarray, " n"]:
    """Distance of a well from the median of its plate's controls, in spreads of all controls.

    Root mean square over features, so that about 1 is like a control.
    """
    metadata = table.metadata
    control = (metadata["Metadata_ControlType"] == "negcon").to_numpy()
    x = table.features.astype(np.float64)
    z = np.full(len(x), np.nan)
    centred, centres = x.copy(), {}
    plate = metadata["Metadata_Plate"].to_numpy()
    for name in np.unique(plate[control]):
        centres[name] = np.median(x[control & (plate == name)], axis=0)
        centred[plate == name] -= centres[name]
    if not centres:
        return z
    spread = 1.4826 * np.median(np.abs(centred[control]), axis=0)
    keep = spread > 1e-9
    known = np.isin(plate, list(centres))
    if keep.any():
        z[known] = np.sqrt(((centred[known][:, keep] / spread[keep]) ** 2).mean(axis=1))
    return z


def controls_apart(table: Profiles) -> dict[str, float]:
    """How far each plate's controls lie from those of all plates, in the controls' own spread."""
    metadata = table.metadata
    control = (metadata["Metadata_ControlType"] == "negcon").to_numpy()
    plate = metadata.loc[control, "Metadata_Plate"].to_numpy()
    x = table.features[control].astype(np.float64)
    if len(x) < 2:
        return {}
    middle = np.median(x, axis=0)
    spread = 1.4826 * np.median(np.abs(x - middle), axis=0)
    keep = spread > 1e-9
    z = (x[:, keep] - middle[keep]) / spread[keep]
    return {
        str(name): float(np.sqrt((np.median(z[plate == name], axis=0) ** 2).mean()))
        for name in np.unique(plate)
    }


def values(aligned: Aligned, shown: tuple[str, str], wanted: tuple[str, ...]) -> list[Value]:
    """The numbers that plate maps can show.

    Args:
        aligned: The tables.
        shown: The table before and the one after.
        wanted: More columns or features by name.

    Raises:
        InputError: A wanted name is no number that any table has.
    """
    metadata = aligned.metadata
    tables = dict(zip(aligned.names, aligned.tables, strict=True))
    many = metadata["Metadata_Plate"].nunique() > 1
    found: list[Value] = []

    def add(name: str, number: Float[np.ndarray, " n"], table: str = "") -> None:
        if np.isfinite(number).any():
            found.append(Value(name=name, table=table, number=number))

    for name in dict.fromkeys(shown):
        table = tables[name]
        if many:
            add(OWN_PLATE, own_plate(table), name)
            add(RETRIEVAL, retrieval(table), name)
        add("distance from the plate's controls", from_controls(table), name)
    if aligned.count is not None:
        add(CELLS, _numbers(metadata[aligned.count]))
    dose = _numbers(metadata["Metadata_Concentration"])
    if np.nanmax(dose, initial=0) > 0:
        add("concentration", dose)
    first = tables[shown[0]]
    extra = [*wanted, *(_by_plate(first) if many else [])]
    for feature in dict.fromkeys(extra):
        known = False
        for name in dict.fromkeys(shown):
            if feature in tables[name].names:
                column = tables[name].names.index(feature)
                add(feature, tables[name].features[:, column].astype(np.float64), name)
                known = True
        if not known and feature in metadata:
            add(feature.removeprefix("Metadata_"), _numbers(metadata[feature]))
            known = True
        if not known:
            raise InputError(
                f"there is no feature or column {feature!r} to draw on plates",
                fix="use the name of a feature or of a Metadata_ column with numbers",
            )
    return found


def _by_plate(table: Profiles) -> list[str]:
    """The features whose variance lies most between plates."""
    codes = pd.factorize(table.metadata["Metadata_Plate"])[0]
    x = table.features.astype(np.float64)
    x = x - x.mean(axis=0)
    total = (x**2).sum(axis=0)
    count = np.bincount(codes)
    sums = np.zeros((len(count), x.shape[1]))
    np.add.at(sums, codes, x)
    between = (sums**2 / count[:, None]).sum(axis=0)
    share = np.where(total > 0, between / np.where(total > 0, total, 1), 0)
    order = np.lexsort((np.arange(len(share)), -share.round(9)))
    return [table.names[index] for index in order[:NUM_FEATURES]]


def _numbers(column: pd.Series) -> Float[np.ndarray, " n"]:
    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)


def _joined(items: pd.DataFrame, name: str, metadata: pd.DataFrame) -> Float[np.ndarray, " n"]:
    """A column of scored items in the order of the wells; NaN for wells that were not scored."""
    if not len(items):
        return np.full(len(metadata), np.nan)
    number = items.set_index(KEY)[name]
    wells = pd.MultiIndex.from_frame(metadata[KEY])
    return number.reindex(wells).to_numpy(dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Small images of wells.

    Attributes:
        uris: Well (a row of the tables) to its image.
        says: Which wells have one, in a sentence.
        side: Pixels of the longer side.
    """

    uris: dict[int, str]
    says: str
    side: int = IMAGE_SIDE


def pictures(screen: Screen, metadata: pd.DataFrame, *, most: int = MOST_IMAGES) -> Pictures:
    """The first image of each well as a small JPEG, all on one scale of intensities.

    If there are more wells than `most`, wells are taken at even steps over the sorted plates, and
    fewer still where they would need more than 1.5 MB.

    Raises:
        InputError: The screen holds none of the wells.
    """
    manifest = screen.manifest
    keys = list(zip(*(manifest[column].astype(str) for column in WELL[1:]), strict=True))
    first: dict[tuple[str, ...], int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    # A plate that had to be named with its source is `source/plate` in the tables.
    own = list(
        zip(
            metadata["Metadata_Plate"].astype(str).str.rsplit("/", n=1).str[-1],
            metadata["Metadata_Well"].astype(str),
            strict=True,
        )
    )
    there = [row for row, key in enumerate(own) if key in first]
    if not there:
        raise InputError(
            f"the screen {screen.folder.name} has none of the {len(own)} wells of the tables",
            fix="give the screen that the profiles were made of (plates and wells by name)",
        )
    chosen = there if len(there) <= most else [there[i * len(there) // most] for i in range(most)]
    images = [np.asarray(screen.pixels[first[own[row]]][:3]) for row in chosen]
    _, height, width = screen.shape
    step = -(-max(height, width) // IMAGE_SIDE)
    small = [image[:, ::step, ::step].astype(np.float32) for image in images]
    channels = np.stack([image.reshape(len(image), -1) for image in small])
    low = np.percentile(channels, 1, axis=(0, 2))
    high = np.percentile(channels, 99.7, axis=(0, 2))
    uris: dict[int, str] = {}
    size = 0
    for row, image in zip(chosen, small, strict=True):
        uri = jpeg_uri(image, low, high)
        size += len(uri)
        if size > MOST_BYTES:
            break
        uris[row] = uri
    num, names = len(uris), ", ".join(screen.channels[:3])
    if num == len(own):
        text = f"Every well has its image ({names} as blue, green, red; one scale for all)."
    else:
        text = (
            f"{num} of {len(own)} wells have an image ({names} as blue, green, red; one scale for "
            "all), so that the page stays small."
            if num < len(there)
            else f"{num} of {len(own)} wells have an image in the screen ({names} as blue, green, "
            "red; one scale for all)."
        )
    return Pictures(uris=uris, says=text)
