"""Every table in the plane: the same rule, the same settings and the same seed for each.

UMAP (McInnes, Healy and Melville, arXiv 1802.03426) where umap-learn is installed, the first two
principal components otherwise. A map is fitted to its own table, since features differ from table
to table; then it is turned, mirrored and scaled as a whole onto the map of the first table
(orthogonal Procrustes), which changes no neighbourhood and lets the eye compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np
from jaxtyping import Float

from evenfield.errors import InputError
from evenfield.types import Profiles

Rule = Literal["auto", "umap", "pca"]
NEIGHBOURS, LEAST_DISTANCE = 15, 0.1
LEAST_ROWS = 30
"""Below this number of rows UMAP's neighbourhoods mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """Coordinates of the same rows for each table.

    Attributes:
        rule: `UMAP` or `PCA`.
        says: How the maps were made, in a sentence.
        places: For each table (n, 2), centred, at most 1 away from the centre on either axis.
    """

    rule: str
    says: str
    places: tuple[Float[np.ndarray, "n 2"], ...]


def planes(tables: Sequence[Profiles], *, rule: Rule = "auto", seed: int = 0) -> Planes:
    """The maps of all tables.

    Args:
        tables: The same rows in the same order.
        rule: `auto` is UMAP where umap-learn is installed.
        seed: Of UMAP.

    Raises:
        InputError: UMAP was asked for and is not there, or there are too few rows.
    """
    is_there = find_spec("umap") is not None
    if rule == "umap" and not is_there:
        raise InputError(
            "UMAP was asked for and umap-learn is not installed",
            fix="pip install 'evenfield[umap]', or take --map pca",
        )
    if rule == "umap" and len(tables[0]) < LEAST_ROWS:
        raise InputError(
            f"UMAP needs {LEAST_ROWS} wells, there are {len(tables[0])}", fix="take --map pca"
        )
    if rule != "pca" and is_there and len(tables[0]) >= LEAST_ROWS:
        places = [_umap(table.features, seed) for table in tables]
        says = (
            f"UMAP of every table by cosine distance, with {NEIGHBOURS} neighbours, least distance "
            f"{LEAST_DISTANCE} and seed {seed}"
        )
        name = "UMAP"
    else:
        found = [principal_plane(table.features) for table in tables]
        places = [place for place, _ in found]
        shares = ", ".join(f"{100 * share:.0f} %" for _, share in found)
        missing = "" if is_there or rule == "pca" else " (umap-learn is not installed)"
        says = (
            f"First two principal components of every table{missing}; they hold {shares} of the "
            "variance of the tables in turn"
        )
        name = "PCA"
    first = _framed(places[0])
    others = [_framed(onto(first, place)) for place in places[1:]]
    return Planes(rule=name, says=says, places=(first, *others))


def _umap(features: Float[np.ndarray, "n d"], seed: int) -> Float[np.ndarray, "n 2"]:
    import warnings

    from umap import UMAP

    with warnings.catch_warnings():  # it tells that a seed means one thread: we know
        warnings.simplefilter("ignore", UserWarning)
        made = UMAP(
            n_neighbors=NEIGHBOURS,
            min_dist=LEAST_DISTANCE,
            metric="cosine",
            init="pca",
            random_state=seed,
            n_jobs=1,
        )
        return np.asarray(made.fit_transform(features.astype(np.float32)), dtype=np.float64)


def principal_plane(
    features: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, "n 2"], float]:
    """The first two principal components and their share of the variance.

    >>> place, share = principal_plane(np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]))
    >>> place[:, 0].tolist(), share
    ([-2.0, 0.0, 2.0], 1.0)
    """
    x = np.asarray(features, dtype=np.float64)
    x = x - x.mean(axis=0)
    # The smaller of the two Gram matrices; a direction points where its largest entry is positive.
    small = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T
    values, vectors = np.linalg.eigh(small)
    values, vectors = values[::-1], vectors[:, ::-1]
    two = vectors[:, :2]
    if x.shape[1] <= x.shape[0]:
        sign = np.sign(two[np.abs(two).argmax(axis=0), np.arange(two.shape[1])])
        place = x @ (two * sign)
    else:
        place = two * np.sqrt(np.maximum(values[:2], 0))
        place = place * np.sign(place[np.abs(place).argmax(axis=0), np.arange(two.shape[1])])
    place = np.pad(place, ((0, 0), (0, 2 - place.shape[1])))
    total = float(np.maximum(values, 0).sum())
    return place, float(np.maximum(values[:2], 0).sum() / total) if total else 1.0


def onto(
    target: Float[np.ndarray, "n 2"], place: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 2"]:
    """A map turned or mirrored so that its rows lie as near to the target's as they can.

    >>> square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> bool(np.allclose(onto(square, square[:, ::-1]), square))
    True
    """
    place, target = place - place.mean(axis=0), target - target.mean(axis=0)
    u, _, vt = np.linalg.svd(place.T @ target)
    return place @ (u @ vt)


def _framed(place: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Centred and scaled as a whole; far rows lie on the edge, lest they shrink all others."""
    low, high = np.percentile(place, [2, 98], axis=0)
    place = place - (low + high) / 2
    half = max(float((high - low).max()) / 2, 1e-9)
    return np.clip(place / (1.3 * half), -1, 1)
