"""Intensities per plate and channel, exact, from one pass over the pixels with bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from evenfield.data.names import NEGCON
from evenfield.data.roles import Roles
from evenfield.environment import num_cores

COLUMNS = (
    "Metadata_Source", "Metadata_Plate", "channel", "subset", "num_images",
    "mean", "std", "min", "max", "p001", "p50", "p999",
)  # fmt: skip
_BLOCK_BYTES = 1 << 23


def summarise(histogram: np.ndarray) -> dict[str, float | int]:
    """Moments and quantiles of integers, given how often each value occurs.

    Args:
        histogram: (v,) counts; value i occurred histogram[i] times. Not all zero.

    Returns:
        `mean`, `std` (of the population), `min`, `max`, and the smallest values that 0.1 %, 50 %
        and 99.9 % of the pixels do not exceed (`p001`, `p50`, `p999`).

    >>> summarise(np.array([0, 2, 0, 2]))["mean"]
    2.0
    """
    values = np.flatnonzero(histogram)
    counts = histogram[values].astype(np.float64)
    total = counts.sum()
    mean = float(counts @ values / total)
    below = np.cumsum(histogram[values])
    quantile = {
        name: int(values[np.searchsorted(below, q * total)])
        for name, q in (("p001", 0.001), ("p50", 0.5), ("p999", 0.999))
    }
    return {
        "mean": mean,
        "std": float(np.sqrt(counts @ (values - mean) ** 2 / total)),
        "min": int(values[0]),
        "max": int(values[-1]),
        **quantile,
    }


def measure(
    pixels: np.ndarray,
    manifest: pd.DataFrame,
    *,
    channels: tuple[str, ...],
    roles: Roles,
    tick: Callable[[int], None] = lambda num: None,
) -> tuple[pd.DataFrame, str]:
    """Statistics per plate and channel, all images and controls only, and the pixels' checksum.

    One plate's histograms are held at a time: 2 subsets x channels x levels, a few MB. Blocks of
    images are read, hashed and counted in threads; sums of integers do not depend on their order.

    Args:
        pixels: (N, C, H, W) uint8 or uint16, mostly a memory map.
        manifest: N rows.
        channels: C names.
        roles: Which column marks the controls.
        tick: Called with the number of images done since the last call.

    Returns:
        The table (see `COLUMNS`; a plate without controls has no `controls` rows), and the SHA-256
        of the images' SHA-256 digests in row order.
    """
    levels = 1 << (8 * pixels.dtype.itemsize)
    is_control = (manifest[roles.control] == NEGCON).to_numpy()
    digests = np.zeros((len(manifest), 32), np.uint8)
    table: list[dict[str, Any]] = []
    plates: dict[Any, Any] = dict(manifest.groupby(["Metadata_Source", "Metadata_Plate"]).indices)
    lock = Lock()

    def add(histogram: np.ndarray, block: tuple[int, np.ndarray]) -> int:
        subset, part = block
        images = np.ascontiguousarray(pixels[part])
        for row, image in zip(part, images, strict=True):
            digests[row] = np.frombuffer(hashlib.sha256(image).digest(), np.uint8)
        for channel in range(len(channels)):
            counts = np.bincount(images[:, channel].reshape(-1), minlength=levels)
            with lock:
                histogram[subset, channel] += counts
        return len(part)

    with ThreadPoolExecutor(num_cores(), thread_name_prefix="measure") as pool:
        for key, rows in sorted(plates.items(), key=lambda item: item[0]):
            histogram = np.zeros((2, len(channels), levels), np.int64)
            numbers = np.zeros(2, np.int64)
            blocks = list(_blocks(rows, is_control, pixels[:1].nbytes))
            done = pool.map(partial(add, histogram), blocks)
            for (subset, _), num in zip(blocks, done, strict=True):
                numbers[subset] += num
                tick(num)
            histogram[0] += histogram[1]
            numbers[0] += numbers[1]
            table += _rows(key, channels, histogram, numbers)
    return pd.DataFrame(table, columns=list(COLUMNS)), hashlib.sha256(digests.tobytes()).hexdigest()


def _rows(
    plate: tuple[str, str], channels: tuple[str, ...], histogram: np.ndarray, numbers: np.ndarray
) -> Iterator[dict[str, Any]]:
    """A plate's rows of the table: channels of all images, then of its controls if it has some."""
    for subset, name in enumerate(("all", "controls")):
        for index, channel in enumerate(channels if numbers[subset] else ()):
            yield {
                "Metadata_Source": plate[0],
                "Metadata_Plate": plate[1],
                "channel": channel,
                "subset": name,
                "num_images": int(numbers[subset]),
                **summarise(histogram[subset, index]),
            }


def _blocks(
    rows: np.ndarray, is_control: np.ndarray, image_bytes: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(0, other rows) and (1, control rows) in blocks of a few MB."""
    size = max(1, _BLOCK_BYTES // image_bytes)
    for subset in (0, 1):
        own = rows[is_control[rows] == bool(subset)]
        for start in range(0, len(own), size):
            yield subset, own[start : start + size]
