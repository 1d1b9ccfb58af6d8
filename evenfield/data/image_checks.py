"""What the pixels say: copies, empty and saturated channels, focus and intensity that stand apart.

Every image is read once, in parallel; what is kept of it is a hash and four numbers a channel.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from evenfield.data.copies import check_copies
from evenfield.data.drift import apart, trend, units_apart
from evenfield.data.names import NEGCON
from evenfield.data.roles import Finding, Roles, some
from evenfield.data.screen import Screen
from evenfield.progress import track

SATURATED = 0.01
"""The share of pixels at the largest value from which an image counts as saturated."""
FACTOR = float(np.log(2))
"""Focus and intensity count as apart from a factor of two on, and from five robust spreads on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is kept of each image.

    Attributes:
        content: (n,) hash of the pixels; None for a constant image.
        mean: (n, c) mean intensity.
        low: (n, c) smallest value.
        high: (n, c) largest value.
        at_high: (n, c) share of pixels that have the largest value.
        below: (n, c) share of pixels that have the value below that.
        focus: (n, c) share of fine structure (see `fine_structure`); NaN for a constant channel.
    """

    content: list[bytes | None]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    at_high: np.ndarray
    below: np.ndarray
    focus: np.ndarray


def fine_structure(image: Shaped[np.ndarray, "c h w"]) -> Float[np.ndarray, " c"]:
    """Variance of the Laplacian over the variance of the image: blur lowers it, gain does not.

    The variance of the Laplacian is Pech-Pacheco et al. 2000 (ICPR); dividing by the image's makes
    it free of contrast. 20 for white noise, 0 for a plane.

    >>> checks = np.indices((4, 4)).sum(0)[None] % 2
    >>> fine_structure(checks).tolist()  # neighbours differ by 1 from every pixel: Laplacian +-4
    [64.0]
    """
    x = image.astype(np.float32)
    inner = x[:, 1:-1, 1:-1]
    laplacian = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:] - 4 * inner
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = laplacian.var((1, 2), dtype=np.float64) / x.var((1, 2), dtype=np.float64)
    return np.where(np.isfinite(ratio), ratio, np.nan)


def measure_images(screen: Screen) -> Measured:
    """Read every image of a screen once."""
    pixels = screen.pixels
    n, (c, h, w) = screen.num_images, screen.shape
    low, high, mean, at_high, below, focus = (np.full((n, c), np.nan) for _ in range(6))
    content: list[bytes | None] = [None] * n

    def one(row: int) -> None:
        image = np.ascontiguousarray(pixels[row])
        low[row], high[row] = image.min((1, 2)), image.max((1, 2))
        mean[row] = image.mean((1, 2))
        at_high[row] = (image == high[row][:, None, None]).mean((1, 2))
        below[row] = (image == high[row][:, None, None] - 1).mean((1, 2))
        if min(h, w) >= 3:
            focus[row] = fine_structure(image)
        if (low[row] < high[row]).any():
            content[row] = hashlib.blake2b(image.data, digest_size=16).digest()

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        blocks = [range(start, min(start + 256, n)) for start in range(0, n, 256)]
        for block in track(blocks, "audit (images)"):
            list(pool.map(one, block))
    return Measured(
        content=content, mean=mean, low=low, high=high, at_high=at_high, below=below, focus=focus
    )


def check_images(screen: Screen, roles: Roles) -> list[Finding]:
    """The checks of the pixels."""
    found = measure_images(screen)
    manifest = screen.manifest
    return [
        *check_copies(manifest, found.content, roles, "images"),
        *_empty(screen, roles, found),
        *_saturated(screen, roles, found),
        *_focus(screen, roles, found),
        *_intensity(screen, roles, found),
    ]


def _contexts(screen: Screen, roles: Roles) -> pd.Series:
    return screen.manifest[roles.context].astype(str).reset_index(drop=True)


def _empty(screen: Screen, roles: Roles, found: Measured) -> Iterator[Finding]:
    """Channels without any contrast: on whole plates an error, on single images a warning."""
    plate = _contexts(screen, roles)
    for index, channel in enumerate(screen.channels):
        flat = found.low[:, index] == found.high[:, index]
        whole = pd.Series(flat).groupby(plate).transform("all").to_numpy()
        for mask, severity, where in (
            (flat & whole, "error", "whole units of " + roles.context),
            (flat & ~whole, "warning", "single images"),
        ):
            if mask.any():
                units = sorted(set(plate[mask]))
                yield Finding(
                    severity=severity,
                    check="empty-channel",
                    message=f"the channel {channel} is constant in {int(mask.sum())} images "
                    f"({where}): {some(units)}",
                    rows=tuple(np.flatnonzero(mask).tolist()),
                    breaks="normalising divides by nothing there, and the network sees a channel "
                    "that tells the plate",
                    fix="check the export of that channel; leave these images or the channel out",
                    units=tuple(units),
                )


def _saturated(screen: Screen, roles: Roles, found: Measured) -> Iterator[Finding]:
    """Many pixels piled up at the channel's largest value anywhere (12-bit cameras have 4095)."""
    plate = _contexts(screen, roles)
    for index, channel in enumerate(screen.channels):
        full = found.high[:, index] == found.high[:, index].max()
        contrast = found.low[:, index] < found.high[:, index]
        piled = found.at_high[:, index] >= np.maximum(SATURATED, 2 * found.below[:, index])
        mask = full & contrast & piled
        if mask.any():
            units = sorted(set(plate[mask]))
            yield Finding(
                severity="warning",
                check="saturated-channel",
                message=f"{int(mask.sum())} images have {SATURATED:.0%} or more of their pixels of "
                f"{channel} at the largest value, {found.high[:, index].max():.0f}: {some(units)}",
                rows=tuple(np.flatnonzero(mask).tolist()),
                breaks="bright structure is cut off; intensities are too low",
                fix="image with a shorter exposure; leave badly saturated images out",
                units=tuple(units),
            )


def _controls(screen: Screen, roles: Roles) -> np.ndarray:
    return (screen.manifest[roles.control] == NEGCON).to_numpy()


def _by_plate(screen: Screen, roles: Roles, values: np.ndarray, *, controls: bool) -> pd.Series:
    """The median of each plate, over its controls or all of its images."""
    mask = _controls(screen, roles) if controls else np.ones(len(values), dtype=bool)
    plate = _contexts(screen, roles)
    return pd.Series(values[mask]).groupby(plate[mask].to_numpy()).median()


def _inside(plate: pd.Series, values: np.ndarray) -> np.ndarray:
    """Which images stand apart from their plate's others."""
    mask = np.zeros(len(values), dtype=bool)
    for rows in plate.groupby(plate).indices.values():
        own = values[rows]
        if np.isfinite(own).sum() >= 8:
            mask[rows] = apart(own, FACTOR)
    return mask


def _focus(screen: Screen, roles: Roles, found: Measured) -> Iterator[Finding]:
    plate = _contexts(screen, roles)
    for index, channel in enumerate(screen.channels):
        with np.errstate(divide="ignore", invalid="ignore"):
            focus = np.log(found.focus[:, index])
        focus[~np.isfinite(focus)] = np.nan
        medians = _by_plate(screen, roles, focus, controls=False)
        if units := units_apart(medians, FACTOR):
            yield Finding(
                severity="warning",
                check="plates-out-of-focus",
                message=f"the focus of {channel} on {len(units)} units of {roles.context} stands "
                f"apart from the others': {some(units)}",
                rows=tuple(np.flatnonzero(plate.isin(units)).tolist()),
                breaks="texture differs for technical reasons",
                fix="look at these plates; leave them out or image them again",
                units=tuple(units),
            )
        mask = _inside(plate, focus) & (focus < np.nanmedian(focus))
        if mask.any():
            yield Finding(
                severity="info",
                check="images-out-of-focus",
                message=f"{int(mask.sum())} images are blurred in {channel} against their plate's "
                f"others: {some(sorted(set(plate[mask])))}",
                rows=tuple(np.flatnonzero(mask).tolist()),
                breaks="a blurred image tells little of its well",
                fix="look at them; leave blurred images out (strong treatments may look so, too)",
                units=tuple(sorted(set(plate[mask]))),
            )
        yield from trend(
            screen.manifest, roles, _by_plate(screen, roles, focus, controls=True),
            f"the focus of {channel}", tests=2 * len(screen.channels),
        )  # fmt: skip


def _intensity(screen: Screen, roles: Roles, found: Measured) -> Iterator[Finding]:
    plate = _contexts(screen, roles)
    for index, channel in enumerate(screen.channels):
        value = np.log(np.maximum(found.mean[:, index], 0.5))
        medians = _by_plate(screen, roles, value, controls=True)
        if units := units_apart(medians, FACTOR):
            yield Finding(
                severity="warning",
                check="plates-of-other-intensity",
                message=f"the controls' intensity of {channel} on {len(units)} units of "
                f"{roles.context} stands apart from the others': {some(units)}",
                rows=tuple(np.flatnonzero(plate.isin(units)).tolist()),
                breaks="the plate is told by its brightness",
                fix="normalise per plate on controls; look whether stain or exposure failed",
                units=tuple(units),
            )
        mask = _inside(plate, value)
        if mask.any():
            yield Finding(
                severity="info",
                check="images-of-other-intensity",
                message=f"{int(mask.sum())} images stand apart in the intensity of {channel} from "
                f"their plate's others: {some(sorted(set(plate[mask])))}",
                rows=tuple(np.flatnonzero(mask).tolist()),
                breaks="debris, lost cells or a strong treatment: one of them is technical",
                fix="look at them before leaving any out",
                units=tuple(sorted(set(plate[mask]))),
            )
        yield from trend(
            screen.manifest, roles, medians, f"the intensity of {channel}",
            tests=2 * len(screen.channels),
        )  # fmt: skip
