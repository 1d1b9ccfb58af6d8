"""One illumination function per plate and channel, from all images of the plate.

Singh et al., "Pipeline for illumination correction of images for high-throughput microscopy",
J. Microscopy 2014, in the form of DeepProfiler's `prepare`: mean of the shrunk images, median
filter, floor at the 2nd percentile, division.

Departures from DeepProfiler: the images are shrunk by area (it resamples with anti-aliasing), and
the function is enlarged linearly from pixel centres.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Integer, UInt16
from scipy import ndimage

from evenfield.data.process import resize_area, resize_linear
from evenfield.errors import InputError

DOWN_SCALE = 4
RADIUS = 12  # pixels of the shrunk image: half of DeepProfiler's median_filter_size of 24
FLOOR = 2.0  # percent
CAP = 0.9999


class PlateLight:
    """Sums over the images of one plate; a few MB, however many images there are."""

    def __init__(self) -> None:
        self._sum: np.ndarray | None = None
        self._histogram: np.ndarray | None = None
        self._size = (0, 0)
        self.num_images = 0

    def add(self, part: tuple[np.ndarray, np.ndarray, tuple[int, int]]) -> None:
        """Add what `reduce_field` made of one image.

        Raises:
            InputError: It has another size than the plate's other images.
        """
        small, histogram, size = part
        if self._sum is None or self._histogram is None:
            self._sum, self._histogram, self._size = small.copy(), histogram.copy(), size
        elif small.shape != self._sum.shape or size != self._size:
            raise InputError(
                f"is {size[0]} x {size[1]}, others of its plate are "
                f"{self._size[0]} x {self._size[1]}",
                fix="illumination correction needs images of one size per plate",
            )
        else:
            self._sum += small
            self._histogram += histogram
        self.num_images += 1

    def function(self) -> tuple[UInt16[np.ndarray, "c y x"], Float[np.ndarray, " c"]]:
        """The filtered mean, (C, h, w), and each channel's 99.99 % point over all pixels."""
        if self._sum is None or self._histogram is None:
            raise ValueError("no image was added")
        mean = (self._sum / self.num_images).astype(np.uint16)
        y, x = np.ogrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
        disk = x**2 + y**2 <= RADIUS**2
        smooth = np.stack([ndimage.median_filter(plane, footprint=disk) for plane in mean])
        below = np.cumsum(self._histogram, axis=1)
        cap = [float(np.searchsorted(row, CAP * row[-1])) for row in below]
        return smooth, np.array(cap)


def reduce_field(
    field: Integer[np.ndarray, "c h w"],
) -> tuple[Float[np.ndarray, "c y x"], Integer[np.ndarray, "c v"], tuple[int, int]]:
    """What a plate's function needs of one image: it shrunk, its histogram, its size.

    Raises:
        InputError: The pixels are not 8- or 16-bit integers.
    """
    if field.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"illumination correction needs 8- or 16-bit images, not {field.dtype}",
            fix="export integer images or switch the correction off",
        )
    size = field.shape[1], field.shape[2]
    small = resize_area(field, *(max(1, side // DOWN_SCALE) for side in size))
    histogram = np.stack([np.bincount(plane.reshape(-1), minlength=1 << 16) for plane in field])
    return small.astype(np.float64), histogram, size


def enlarge(
    smooth: UInt16[np.ndarray, "c y x"], height: int, width: int
) -> Float[np.ndarray, "c height width"]:
    """The function at full size: max(F, r) / r with r the 2nd percentile of F; at least 1."""
    out = np.empty((len(smooth), height, width), np.float32)
    for channel, plane in enumerate(smooth):
        full = resize_linear(resize_linear(plane.astype(np.float64), 0, height), 1, width)
        floor = max(float(np.percentile(full, FLOOR)), 1.0)
        out[channel] = np.maximum(full, floor) / floor
    return out
