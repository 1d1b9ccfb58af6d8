"""From a decoded field to what is stored: illumination, size, bit depth, crops, in this order.

The percentile stretch is per image and channel and takes most of the absolute intensity away: part
of a batch effect is gone with it, and so are real differences in brightness. 16 bit is the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8

from evenfield.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What is done to each field once, at ingest.

    Attributes:
        illumination: Divide by an illumination function per plate and channel (DeepProfiler).
        resize: Height and width after shrinking by area, before the crops; none = as it is.
        pixel_size_um: Side of a pixel in micrometres to which every field is resampled, before the
            crops, so that microscopes agree (give `crop`, too: their fields then differ in size);
            none = as it is.
        eight_bit: `off`; `deepprofiler`: 0.05 to 99.95 % of each image and channel become 0 to
            255; `cs-arm-bn`: 0 to the 99.99 % point.
        grid: Rows and columns of crops that a field is cut into, one row of the manifest each.
        crop: Side of a crop in pixels, centred in its cell of the grid; 0 = the whole cell.
    """

    illumination: bool = False
    resize: tuple[int, int] | None = None
    pixel_size_um: float | None = None
    eight_bit: Literal["off", "deepprofiler", "cs-arm-bn"] = "off"
    grid: tuple[int, int] = (1, 1)
    crop: int = 0

    def __post_init__(self) -> None:
        if min(self.grid) < 1 or self.crop < 0 or (self.resize and min(self.resize) < 1):
            raise InputError(
                f"grid {self.grid}, crop {self.crop}, resize {self.resize}: sizes must be positive",
                fix="give whole numbers above 0 (crop 0 = the whole cell)",
            )
        if self.pixel_size_um is not None and (self.resize or not self.pixel_size_um > 0):
            raise InputError(
                f"pixel_size_um {self.pixel_size_um} with resize {self.resize}",
                fix="give a size above 0 micrometres, and one of the two: resize decides the "
                "number of pixels, pixel_size_um what each of them covers",
            )

    @property
    def num_crops(self) -> int:
        """Crops that one field gives."""
        return self.grid[0] * self.grid[1]


def apply(
    field: Shaped[np.ndarray, "c h w"],
    process: Process,
    *,
    illumination: Float[np.ndarray, "c h w"] | None = None,
    cap: Float[np.ndarray, " c"] | None = None,
    pixel_size_um: float | None = None,
) -> Integer[np.ndarray, "n c y x"]:
    """A decoded field as the crops that are stored, uint8 or uint16.

    Args:
        field: As decoded; integers, or floats where `eight_bit` is on.
        process: What is done.
        illumination: The plate's function, at least 1 everywhere.
        cap: The plate's 99.99 % point of each channel; no stretch reaches above it.
        pixel_size_um: Side of the field's pixels in micrometres, where known.

    Raises:
        InputError: Values do not fit into 16 bits, a crop is larger than its cell, or the size of
            the pixels is asked for and not known.
    """
    image = field if process.eight_bit != "off" else _integers(field)
    kind = np.uint8 if image.dtype == np.uint8 else np.uint16
    if illumination is not None:
        image = image / illumination
    if process.resize is not None:
        image = resize_area(image, *process.resize)
    if process.pixel_size_um is not None:
        if pixel_size_um is None:
            raise InputError(
                "the size of its pixels is not known",
                fix="name it in the reader's settings or tables, or leave process.pixel_size_um",
            )
        image = resample(image, pixel_size_um / process.pixel_size_um)
    if process.eight_bit != "off":
        image = _eight_bit(image, process.eight_bit, cap)
    elif image.dtype.kind == "f":
        image = np.rint(image).astype(kind)
    return _crops(image, process)


def _integers(field: np.ndarray) -> np.ndarray:
    """The same numbers as uint8 or uint16."""
    if field.dtype in (np.uint8, np.uint16):
        return field
    low, high = field.min(), field.max()
    whole = field.dtype.kind in "iu" or (
        field.dtype.kind == "f" and np.array_equal(field, np.rint(field))
    )
    if not whole or low < 0 or high > np.iinfo(np.uint16).max:
        raise InputError(
            f"{field.dtype} pixels from {low:g} to {high:g} are no 16-bit numbers",
            fix="export 8- or 16-bit images, or switch the percentile 8-bit option on",
        )
    return field.astype(np.uint16)


def percentiles(plane: np.ndarray, points: tuple[float, ...]) -> tuple[float, ...]:
    """Percentiles with linear interpolation, by counting where the values are integers.

    >>> percentiles(np.array([[0, 1], [2, 10]], np.uint16), (50.0, 100.0))
    (1.5, 10.0)
    """
    if plane.dtype not in (np.uint8, np.uint16):
        return tuple(float(value) for value in np.percentile(plane, points))
    below = np.cumsum(np.bincount(plane.reshape(-1)))
    answer = []
    for point in points:
        place = (plane.size - 1) * point / 100
        low, high = np.searchsorted(below, [np.floor(place), np.ceil(place)], side="right")
        answer.append(float(low + (high - low) * (place - np.floor(place))))
    return tuple(answer)


def _eight_bit(image: np.ndarray, rule: str, cap: np.ndarray | None) -> UInt8[np.ndarray, "c h w"]:
    out = np.empty(image.shape, np.uint8)
    for channel, plane in enumerate(image):
        if rule == "deepprofiler":
            low, high = percentiles(plane, (0.05, 99.95))
        else:
            (high,), low = percentiles(plane, (99.99,)), 0.0
        if cap is not None:
            high = min(high, float(cap[channel]))
        if plane.dtype in (np.uint8, np.uint16):
            levels = np.arange(1 << (8 * plane.dtype.itemsize), dtype=np.float64)
            out[channel] = _stretch(levels, low, high)[plane]
        else:
            out[channel] = _stretch(plane, low, high)
    return out


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """[low, high] onto [0, 255], rounded; an empty interval leaves only what lies above it."""
    if high <= low:
        return np.where(values > low, 255, 0).astype(np.uint8)
    scaled = (np.clip(values, low, high) - low) * (255.0 / (high - low))
    return np.rint(scaled).astype(np.uint8)


def resize_area(
    image: Shaped[np.ndarray, "c h w"], height: int, width: int
) -> Float[np.ndarray, "c height width"]:
    """Each new pixel is the mean over the area that it covers.

    >>> resize_area(np.arange(8.0).reshape(1, 2, 4), 1, 2)[0].tolist()
    [[2.5, 4.5]]
    """
    if image.shape[1:] == (height, width):
        return image
    return _area(_area(image, 1, height), 2, width)


def resample(
    image: Shaped[np.ndarray, "c h w"], scale: float
) -> Shaped[np.ndarray, "c height width"]:
    """`scale` times as many pixels a side, to the nearest whole one, over the same area.

    Fewer by area, so that no pixel is skipped; more by linear interpolation.

    >>> resample(np.arange(4.0).reshape(1, 2, 2), 2.0)[0, 0].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    for axis in (1, 2):
        num = max(1, round(image.shape[axis] * scale))
        if num < image.shape[axis]:
            image = _area(image, axis, num)
        elif num > image.shape[axis]:
            image = resize_linear(image, axis, num)
    return image


def resize_linear(image: np.ndarray, axis: int, num: int) -> np.ndarray:
    """Linear interpolation along an axis between pixel centres, constant beyond the outer ones."""
    size = image.shape[axis]
    place = np.clip((np.arange(num) + 0.5) * size / num - 0.5, 0, size - 1)
    low = np.minimum(place.astype(int), max(size - 2, 0))
    high = np.minimum(low + 1, size - 1)
    part = (place - low).reshape([-1 if other == axis else 1 for other in range(image.ndim)])
    return np.take(image, low, axis) * (1 - part) + np.take(image, high, axis) * part


def _area(image: np.ndarray, axis: int, num: int) -> np.ndarray:
    size = image.shape[axis]
    if size % num == 0:
        # Adding strided slices is several times faster than numpy's reduction of a short axis.
        step = size // num
        where = (slice(None),) * axis
        total = image[(*where, slice(0, None, step))].astype(
            np.float64 if image.dtype.kind == "f" else np.uint32
        )
        for start in range(1, step):
            np.add(total, image[(*where, slice(start, None, step))], out=total)
        return total / step
    # The mean over an interval is the difference of the integral at its ends.
    zero = [(1, 0) if other == axis else (0, 0) for other in range(image.ndim)]
    integral = np.pad(np.cumsum(image, axis=axis, dtype=np.float64), zero)
    place = np.linspace(0, size, num + 1)
    whole = np.minimum(place.astype(int), size - 1)
    part = (place - whole).reshape([-1 if other == axis else 1 for other in range(image.ndim)])
    left, right = np.take(integral, whole, axis), np.take(integral, whole + 1, axis)
    return np.diff(left + (right - left) * part, axis=axis) * (num / size)


def _crops(image: np.ndarray, process: Process) -> np.ndarray:
    if process.num_crops == 1 and not process.crop:
        return image[None]
    rows, columns = process.grid
    cell_h, cell_w = image.shape[1] // rows, image.shape[2] // columns
    h, w = (process.crop, process.crop) if process.crop else (cell_h, cell_w)
    if h > cell_h or w > cell_w or min(h, w) < 1:
        raise InputError(
            f"crops of {h} x {w} pixels do not fit a {rows} x {columns} grid on "
            f"{image.shape[1]} x {image.shape[2]}",
            fix="choose smaller crops or fewer of them",
        )
    # What the grid leaves over is split between the edges.
    top = (image.shape[1] - rows * cell_h) // 2 + (cell_h - h) // 2
    left = (image.shape[2] - columns * cell_w) // 2 + (cell_w - w) // 2
    return np.stack(
        [
            image[:, y : y + h, x : x + w]
            for y in range(top, top + rows * cell_h, cell_h)
            for x in range(left, left + columns * cell_w, cell_w)
        ]
    )
