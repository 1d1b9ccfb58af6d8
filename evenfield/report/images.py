"""Example fields as PNG data, written by hand so that no software stamp or date enters."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode

import numpy as np
from jaxtyping import UInt8

MOST_SIDE = 160


def png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """An 8-bit RGB image as PNG (RFC 2083), each line filtered by its difference upwards."""
    height, width, _ = image.shape
    above = np.concatenate([np.zeros_like(image[:1]), image[:-1]])
    lines = (image - above).reshape(height, width * 3)  # uint8 wraps, as the filter asks
    data = np.concatenate([np.full((height, 1), 2, np.uint8), lines], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + check


def data_uri(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """An image for a page, thinned to at most 160 pixels a side."""
    step = -(-max(image.shape[:2]) // MOST_SIDE)
    return "data:image/png;base64," + b64encode(png(image[::step, ::step])).decode()
