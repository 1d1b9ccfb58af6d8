"""An `.npy` file of known size that several threads fill row by row."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np


def create(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Make the file, its space reserved: a disk that is too small says so now, not hours later.

    Raises:
        OSError: There is not enough space.
    """
    header = _header(shape, dtype)
    size = len(header) + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    with path.open("wb") as file:
        file.write(header)
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


class PixelFile:
    """Writes into a file made by `create`; plain writes, since a memory map dies on a full disk.

    Args:
        path: The file.
        shape: (N, C, H, W).
        dtype: Type of the pixels.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._offset = len(_header(shape, dtype))
        self._row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        self._file = os.open(path, os.O_RDWR)

    def write(self, index: np.ndarray, images: np.ndarray) -> None:
        """Write contiguous images (n, C, H, W) at rows (n,); a stretch of rows is one write."""
        for start, stop in _runs(index):
            offset = self._offset + int(index[start]) * self._row_bytes
            view = images[start:stop].reshape(-1).view(np.uint8).data
            while len(view):
                written = os.pwrite(self._file, view, offset)
                view, offset = view[written:], offset + written

    def sync(self) -> None:
        """Force everything written to the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def _runs(index: np.ndarray) -> Iterator[tuple[int, int]]:
    cuts = np.flatnonzero(np.diff(index) != 1) + 1
    edges = [0, *cuts.tolist(), len(index)]
    yield from ((a, b) for a, b in pairwise(edges) if a < b)
