"""Profiles that know nothing but the number of cells, or nothing at all: what a score is to beat.

The cell-count baseline: any metric, given the one feature "number of cells". Toxic treatments are
recognised by it alone, so that a score means something only beside it (a comparison with cell count
is part of the benchmark of Nat. Commun. 2026, s41467-026-68725-5).

One positive feature has no direction: all cosines would be 1, all correlations undefined. So a
count is laid on a quarter of a circle, by its rank: profiles of near counts then have near
directions, and cosine, correlation and distance all sort by the difference of ranks. Equal counts
are ordered at random (seeded), lest the order of rows decides.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from evenfield.errors import InputError
from evenfield.metrics.base import ProfileMetric, Score
from evenfield.metrics.kernels.pairs import codes_of
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles

CELL_COUNT = "Metadata_CellCount"
# Two orthogonal directions of mean 0: then the correlation of two profiles is their cosine.
AXES = np.array([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]) / np.sqrt([[2.0], [6.0]])


def on_arc(value: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
    """Numbers from 0 to 1 as directions on a quarter of a circle; rows have length 1 and mean 0.

    >>> arc = on_arc(np.array([0.0, 0.5, 1.0]))
    >>> (arc @ arc.T).round(3).tolist()[0]  # cosine of 0, 45 and 90 degrees
    [1.0, 0.707, 0.0]
    """
    angle = np.asarray(value, dtype=np.float64) * np.pi / 2
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) @ AXES


def cell_count_profiles(
    profiles: Profiles,
    *,
    count: str = CELL_COUNT,
    within: str | None = None,
    seed: int = 0,
) -> Profiles:
    """The same rows with the rank of their number of cells as the only information.

    Args:
        profiles: (n, d) wells.
        count: The column with the number of cells.
        within: A column (mostly the plate): ranks are then taken within each of its names, which
            takes differences of seeding density between plates away.
        seed: Of the order of equal counts.

    Raises:
        InputError: The column is missing, or holds something that is no count.
    """
    metadata = profiles.metadata
    absent = [name for name in (count, within) if name is not None and name not in metadata]
    if absent:
        raise InputError(
            f"there is no column {', '.join(absent)}",
            fix="name the column with the number of cells of each well: without it the cell-count "
            "baseline cannot stand beside a score",
        )
    number = pd.to_numeric(metadata[count], errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~(np.isfinite(number) & (number >= 0)))
    if len(bad):
        raise InputError(
            f"{len(bad)} rows of {count} are no counts (first: row {bad[0]}, "
            f"{metadata[count].iloc[bad[0]]!r})",
            fix="fill them or drop these wells",
        )
    number = number + numpy_generator(seed, "cell-count").uniform(-0.25, 0.25, len(number))
    group = np.zeros(len(number), np.int64) if within is None else codes_of(metadata[within])[0]
    rank = np.empty(len(number))
    for code in np.unique(group):
        rows = group == code
        rank[rows] = (rankdata(number[rows]) - 0.5) / rows.sum()
    names = ("count_x", "count_y", "count_z")
    return profiles.with_features(on_arc(rank), names)


def random_profiles(profiles: Profiles, *, num_features: int = 64, seed: int = 0) -> Profiles:
    """The same rows with normal noise as features."""
    noise = numpy_generator(seed, "random-profiles").normal(size=(len(profiles), num_features))
    return profiles.with_features(noise, tuple(f"noise_{i}" for i in range(num_features)))


def cell_count_scores(
    metric: ProfileMetric, profiles: Profiles, *, count: str = CELL_COUNT
) -> dict[str, Score]:
    """The same metric on the number of cells and on its rank within each plate.

    Returns:
        Scores under the names `cell count` and, where the table has plates, `cell count, rank
        within plate`.
    """
    found = {"cell count": metric(cell_count_profiles(profiles, count=count))}
    plate = metric.columns.plate
    if plate is not None and plate in profiles.metadata:
        ranked = cell_count_profiles(profiles, count=count, within=plate)
        found["cell count, rank within plate"] = metric(ranked)
    return {
        name: replace(score, notes=(*score.notes, "features: the number of cells, nothing else"))
        for name, score in found.items()
    }
