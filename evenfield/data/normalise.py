"""One scale and one shift for each image and channel that make an image standard."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Integer

from evenfield.config import View
from evenfield.errors import EvenfieldWarning, InputError

if TYPE_CHECKING:
    from evenfield.data.store import Screen

Normalisation = Literal["image", "plate", "controls", "dataset", "unit"]
PLATE = ["Metadata_Source", "Metadata_Plate"]
EXACT_PIXELS = 1 << 20
"""Squares of 2^20 16-bit pixels sum below 2^53: in float64 each such sum is exact."""


class Normaliser:
    """Whose mean and standard deviation make an image standard.

    Attributes:
        normalise: "image" (its own), "plate" (all images of its plate), "controls" (the negative
            controls of its plate; a plate without them falls back to all its images, with a
            warning), "dataset" (the perturbed images of the training rows) or "unit" (nobody's: the
            range of the pixel type becomes 0 to 1).
        channels: The names of the channels that it was fitted on.
        mean: (c,) of "dataset", in pixel values; None otherwise.
        std: (c,) of "dataset", in pixel values; None otherwise.

    Raises:
        InputError: There is no normalisation of this name.
    """

    def __init__(
        self,
        normalise: Normalisation,
        channels: tuple[str, ...],
        mean: Float[np.ndarray, " c"] | None = None,
        std: Float[np.ndarray, " c"] | None = None,
    ) -> None:
        if normalise not in get_args(Normalisation):
            raise InputError(
                f"there is no normalisation {normalise!r}",
                fix=f"choose one of: {', '.join(get_args(Normalisation))}",
            )
        self.normalise = normalise
        self.channels = tuple(channels)
        self.mean = mean
        self.std = std
        self._known: dict[str, Float[np.ndarray, "2 N c"]] = {}

    @classmethod
    def fit(cls, screen: Screen, rows: Int[np.ndarray, " n"], view: View) -> Normaliser:
        """Learn from training rows what `view.normalise` asks for (only "dataset" learns).

        Raises:
            InputError: "dataset", and no row is a perturbed image.
        """
        if view.normalise != "dataset":
            return cls(view.normalise, screen.channels)
        kind = screen.manifest["Metadata_ControlType"].to_numpy()[rows]
        perturbed = np.asarray(rows)[~np.isin(kind, ["negcon", "empty"])]
        if len(perturbed) == 0:
            raise InputError(
                f"none of the {len(rows)} training images is perturbed (all are negcon or empty)",
                fix="train on rows with treatments, or normalise by image, plate or controls",
            )
        count, sums, squares = 0, 0, 0
        for part in exact_sums(screen.pixels, np.sort(perturbed)):
            count += part[0]
            sums = sums + part[1].sum(0).astype(object)  # Python's integers never overflow
            squares = squares + part[2].sum(0).astype(object)
        mean, std = standard(count, np.asarray(sums), np.asarray(squares))
        return cls(view.normalise, screen.channels, mean, std)

    def affine(
        self, screen: Screen, rows: Int[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
        """Scale and shift (float32) so that `pixels * scale + shift` is the normalised image.

        A channel without any contrast (standard deviation 0) becomes 0.

        Raises:
            InputError: The screen has other channels than the one fitted on.
        """
        if tuple(screen.channels) != self.channels:
            raise InputError(
                f"the screen's channels are {', '.join(screen.channels)}, "
                f"the normalisation was fitted on {', '.join(self.channels)}",
                fix="ingest the screen with the same channels in the same order",
            )
        rows = np.asarray(rows)
        if self.normalise == "unit":
            shape = (len(rows), len(self.channels))
            largest = np.iinfo(screen.dtype).max
            return np.full(shape, 1 / largest, np.float32), np.zeros(shape, np.float32)
        if self.normalise == "dataset":
            assert self.mean is not None
            assert self.std is not None
            mean = np.broadcast_to(self.mean, (len(rows), len(self.channels)))
            std = np.broadcast_to(self.std, mean.shape)
        else:
            mean, std = self._moments(screen, rows)
        scale = 1 / np.where(std > 0, std, 1.0)
        return scale.astype(np.float32), (-mean * scale).astype(np.float32)

    def _moments(
        self, screen: Screen, rows: Int[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
        """Of each row's image or plate, looked up once and remembered."""
        shape = (2, screen.num_images, len(self.channels))
        if screen.fingerprint not in self._known:
            self._known[screen.fingerprint] = np.full(shape, np.nan)
        known = self._known[screen.fingerprint]
        fresh = np.unique(rows[np.isnan(known[0, rows, 0])])
        if len(fresh) and self.normalise == "image":
            fill_by_image(known, screen, fresh)
        elif len(fresh):
            fill_by_plate(known, screen, fresh, controls=self.normalise == "controls")
        return known[0, rows], known[1, rows]

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        return {
            "normalise": self.normalise,
            "channels": list(self.channels),
            "mean": None if self.mean is None else self.mean.tolist(),
            "std": None if self.std is None else self.std.tolist(),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Normaliser:
        """The inverse of `to_dict`, bit for bit."""
        mean, std = (
            None if state[name] is None else np.asarray(state[name], np.float64)
            for name in ("mean", "std")
        )
        return cls(state["normalise"], tuple(state["channels"]), mean, std)


def fill_by_image(
    known: Float[np.ndarray, "2 N c"], screen: Screen, rows: Int[np.ndarray, " n"]
) -> None:
    """Mean and standard deviation of whole images, not of their crops."""
    start = 0
    for _, sums, squares in exact_sums(screen.pixels, rows):
        at = rows[start : start + len(sums)]
        start += len(sums)
        known[:, at] = standard(int(np.prod(screen.shape[1:])), sums, squares)


def fill_by_plate(
    known: Float[np.ndarray, "2 N c"],
    screen: Screen,
    rows: Int[np.ndarray, " n"],
    *,
    controls: bool,
) -> None:
    """The screen's own statistics of the plates of some rows, for all rows of these plates."""
    table = screen.statistics
    table = table[table["num_images"] > 0].set_index([*PLATE, "subset", "channel"])
    plates = screen.manifest[PLATE]
    for plate in plates.iloc[rows].drop_duplicates().itertuples(index=False, name=None):
        subset = "controls" if controls else "all"
        if (*plate, subset, screen.channels[0]) not in table.index:
            warnings.warn(
                f"plate {plate[1]} of source {plate[0]} has no negative controls: its images are "
                "normalised by all images of the plate",
                EvenfieldWarning,
                stacklevel=4,
            )
            subset = "all"
        lines = table.loc[[(*plate, subset, channel) for channel in screen.channels]]
        known[:, (plates == plate).all(axis=1).to_numpy()] = np.stack(
            [lines["mean"].to_numpy(np.float64), lines["std"].to_numpy(np.float64)]
        )[:, None]


def standard(
    count: int, sums: np.ndarray, squares: np.ndarray
) -> tuple[Float[np.ndarray, "*n c"], Float[np.ndarray, "*n c"]]:
    """Mean and biased standard deviation from exact integer sums.

    `count * squares - sums^2` is computed in integers: floats would lose the variance of a dim
    channel on a bright background.

    >>> standard(2, np.array([4]), np.array([10]))
    (array([2.]), array([1.]))
    """
    sums, squares = sums.astype(object), squares.astype(object)
    variance = (count * squares - sums * sums).astype(np.float64) / float(count) ** 2
    return sums.astype(np.float64) / count, np.sqrt(variance)


def exact_sums(
    pixels: Integer[np.ndarray, "N c H W"], rows: Int[np.ndarray, " n"]
) -> Iterator[tuple[int, Int[np.ndarray, "m c"], Int[np.ndarray, "m c"]]]:
    """Run by run over the rows: pixels per channel, and each image's exact sums and squares."""
    plain = np.asarray(pixels)
    size = plain.shape[2] * plain.shape[3]
    run = max(1, EXACT_PIXELS // size)
    for start in range(0, len(rows), run):
        part = plain[rows[start : start + run]].reshape(-1, plain.shape[1], size)
        sums = np.zeros(part.shape[:2], np.int64)
        squares = np.zeros_like(sums)
        for first in range(0, size, EXACT_PIXELS):
            values = part[:, :, first : first + EXACT_PIXELS].astype(np.float64)
            sums += values.sum(2).astype(np.int64)
            squares += np.einsum("ncp,ncp->nc", values, values).astype(np.int64)
        yield len(part) * size, sums, squares
