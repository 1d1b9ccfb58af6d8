"""Images of any number of channels as red, green and blue."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8


def composite(
    images: Float[np.ndarray, "n c h w"], low: float, high: float
) -> UInt8[np.ndarray, "n h w 3"]:
    """The first three channels as blue, green and red (nuclei come first and are blue).

    >>> composite(np.array([0.0, 5.0, 10.0]).reshape(1, 3, 1, 1), 0.0, 10.0).tolist()
    [[[[255, 127, 0]]]]
    """
    scaled = np.clip((images[:, :3] - low) / max(high - low, 1e-6), 0, 1)
    rgb = np.zeros((len(images), 3, *images.shape[2:]), dtype=np.float32)
    for channel in range(scaled.shape[1]):
        rgb[:, 2 - channel] = scaled[:, channel]
    return (rgb.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
