"""One image file to numbers, (C, H, W); what is damaged is told, never filled with zeros."""

from __future__ import annotations

import logging
import struct
from collections.abc import Collection, Sequence
from io import BytesIO
from pathlib import Path
from zlib import crc32

import imagecodecs
import numpy as np
import tifffile

from evenfield.errors import InputError

# tifffile also logs what it raises; the error below says it once, with the file's name.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# What a parser of arbitrary bytes may trip over.
_FAULTS = (
    ValueError,  # tifffile.TiffFileError and UnicodeDecodeError are ValueErrors
    RuntimeError,  # every codec's error of imagecodecs
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    TypeError,
    EOFError,
    MemoryError,
    struct.error,
)
_CHANNEL_AXES = set("CSQIZT")


def read_image(path: Path, *, num_channels: int) -> np.ndarray:
    """Decode a TIFF (8 or 16 bit, or float) or a PNG as (num_channels, H, W).

    Args:
        path: The file.
        num_channels: How many channels it must hold; tells CYX from YXC where the file does not.

    Raises:
        InputError: It is missing, truncated, damaged, of another kind, or holds another number of
            channels.
    """
    return _decode(path, str(path), num_channels)


def decode_image(raw: bytes, name: str, *, num_channels: int) -> np.ndarray:
    """Decode what a file of that name holds, wherever it was read from; else as `read_image`."""
    return _decode(raw, name, num_channels)


def _decode(file: Path | bytes, name: str, num_channels: int) -> np.ndarray:
    suffix = Path(name).suffix.lower()
    if suffix not in {".tif", ".tiff", ".png"}:
        raise InputError(f"{name}: not a TIFF or PNG by its name", fix="give .tif, .tiff or .png")
    try:
        image, axes = _tiff(file) if suffix != ".png" else _png(file)
    except OSError as error:
        raise InputError(
            f"{name}: {error.strerror or error}", fix="check the path and the permissions"
        ) from error
    except _FAULTS as error:
        raise InputError(
            f"{name}: truncated or damaged ({str(error).strip() or type(error).__name__})",
            fix="copy the file again",
        ) from error
    return _channels_first(name, image, axes, num_channels)


def _tiff(source: Path | bytes) -> tuple[np.ndarray, str]:
    opened: Path | BytesIO
    if isinstance(source, bytes):
        opened, size = BytesIO(source), len(source)
    else:
        opened, size = source, source.stat().st_size
    with tifffile.TiffFile(opened) as file:
        if not file.series:
            raise ValueError("it holds no image")
        for page in file.pages:
            ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=True)]
            if not ends or max(ends) > size or 0 in page.databytecounts:
                # tifffile would read what is not there as zeros.
                raise ValueError(f"pixels end at byte {max(ends, default=0)}, the file at {size}")
        series = file.series[0]
        image = series.asarray(maxworkers=1)
        if image.shape != series.shape:
            raise ValueError(f"{image.shape} pixels where {series.shape} are announced")
        return image, series.axes


def _png(source: Path | bytes) -> tuple[np.ndarray, str]:
    raw = source if isinstance(source, bytes) else source.read_bytes()
    _check_png(raw)
    image = imagecodecs.png_decode(raw)
    return image, "YX" if image.ndim == 2 else "YXC"


def _check_png(raw: bytes) -> None:
    """Every chunk whole and as it was written: the codec only warns of damaged pixels."""
    start, kind = 8, b""
    while kind != b"IEND":
        (length,), kind = struct.unpack_from(">I", raw, start), raw[start + 4 : start + 8]
        stop = start + 8 + length
        if struct.unpack_from(">I", raw, stop)[0] != crc32(raw[start + 4 : stop]):
            raise ValueError(f"the checksum of chunk {kind!r} is wrong")
        start = stop + 4


def _channels_first(name: str, image: np.ndarray, axes: str, num: int) -> np.ndarray:
    keep = [axis for axis, size in enumerate(image.shape) if size > 1 or axes[axis] in "YX"]
    axes = "".join(axes[axis] for axis in keep)
    image = image.reshape([image.shape[axis] for axis in keep])
    if axes == "YX" and num == 1:
        return image[None]
    if image.ndim == 3 and set(axes) & _CHANNEL_AXES:
        first = image.shape[0] == num and (axes[0] not in "YX" or image.shape[2] != num)
        if first:
            return image
        if image.shape[2] == num:
            return np.moveaxis(image, 2, 0)
    raise InputError(
        f"{name}: shape {image.shape} ({axes}) does not hold {num} channel"
        + ("s" if num > 1 else ""),
        fix="name as many channels as the files hold",
    )


def read_rgb(path: Path) -> np.ndarray:
    """Decode a colour PNG, with or without transparency, as red, green and blue: (3, H, W).

    Slide readers write RGBA; the fourth channel says nothing about the tissue and is dropped.

    Raises:
        InputError: It is missing, damaged, or no colour PNG.
    """
    try:
        with path.open("rb") as file:
            kind = file.read(26)[25:]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", fix="check the path") from error
    return read_image(path, num_channels=4 if kind == _PNG_RGBA else 3)[:3]


_PNG_RGBA = b"\x06"
"""The colour type in a PNG's header."""


def join_channels(images: Sequence[np.ndarray], name: str) -> np.ndarray:
    """The channels of a field, each (c, H, W), in one array.

    Raises:
        InputError: They differ in size or type.
    """
    kinds = {(*image.shape[1:], str(image.dtype)) for image in images}
    if len(kinds) > 1:
        found = ", ".join(f"{h} x {w} {kind}" for h, w, kind in sorted(kinds))
        raise InputError(
            f"{name}: its channels differ in size or type ({found})",
            fix="give images of one size and type",
        )
    return np.concatenate(images)


def check_image(
    image: np.ndarray, name: str, channels: tuple[str, ...], may_be_empty: Collection[int] = ()
) -> None:
    """Refuse an image that measured nothing.

    Args:
        image: (C, H, W).
        name: For the message.
        channels: C names, for the message.
        may_be_empty: Numbers of channels that are not looked at for being empty.

    Raises:
        InputError: There is another number of channels, or a channel holds NaN or infinite
            values or one value only.
    """
    if image.ndim != 3 or len(image) != len(channels):
        raise InputError(
            f"{name}: shape {image.shape} does not hold {len(channels)} channels",
            fix="name as many channels as the files hold",
        )
    for number, (channel, plane) in enumerate(zip(channels, image, strict=True)):
        if number in may_be_empty:
            continue
        low, high = plane.min(), plane.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(
                f"{name}: channel {channel} holds NaN or infinite values",
                fix="export the image again",
            )
        if low == high:
            raise InputError(
                f"{name}: channel {channel} is empty (every pixel is {low})",
                fix="image the field again or drop it",
            )
