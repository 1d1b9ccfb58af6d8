"""Fields and wells as small images (PNG by hand, JPEG), without any stamp of software or date."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode

import numpy as np
from jaxtyping import Float, UInt8

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


def jpeg_uri(
    image: Float[np.ndarray, "c h w"], low: Float[np.ndarray, " c"], high: Float[np.ndarray, " c"]
) -> str:
    """Up to three channels as blue, green and red in a small JPEG.

    Args:
        image: Channels of one field.
        low: The intensity of each channel that is black.
        high: The intensity of each channel that is full.
    """
    from imagecodecs import jpeg8_encode

    scaled = np.clip((image.T - low) / np.maximum(high - low, 1e-6), 0, 1).transpose(1, 0, 2)
    rgb = np.zeros((*scaled.shape[:2], 3), np.uint8)
    for channel in range(scaled.shape[2]):
        rgb[:, :, 2 - channel] = (scaled[:, :, channel] * 255).astype(np.uint8)
    return (
        "data:image/jpeg;base64,"
        + b64encode(jpeg8_encode(rgb, level=80, subsampling="444")).decode()
    )
