"""From images to wells: the mean probability over the images of a well."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from evenfield.errors import InputError
from evenfield.metrics.base import LogProbs, checked_log_probs


def to_wells(
    log_probs: LogProbs, group_codes: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "g k"], Int[np.ndarray, " g"]]:
    """Average probabilities (not their logarithms) within wells.

    Args:
        log_probs: (n, k) of images.
        group_codes: (n,) which well an image belongs to: one code for each (source, plate, well).

    Returns:
        Log-probabilities of the wells (g, k) and their codes (g,), in ascending order.

    Raises:
        InputError: Log-probabilities that cannot be scored, or a code missing.

    >>> well, codes = to_wells(np.log([[0.9, 0.1], [0.5, 0.5]]), np.array([7, 7]))
    >>> np.exp(well).round(3).tolist(), codes.tolist()
    ([[0.7, 0.3]], [7])
    """
    log_probs = checked_log_probs(log_probs)
    codes, inverse, counts = _groups(group_codes, len(log_probs))
    total = np.zeros((len(codes), log_probs.shape[1]))
    np.add.at(total, inverse, np.exp(log_probs))
    with np.errstate(divide="ignore"):
        return np.log(total / counts[:, None]), codes


def well_labels(
    labels: Int[np.ndarray, " n"], group_codes: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " g"]:
    """The one label of each well, in the order of `to_wells`.

    Raises:
        InputError: A well holds images of two labels.
    """
    labels = np.asarray(labels)
    codes, inverse, _ = _groups(group_codes, len(labels))
    picked = np.empty(len(codes), dtype=np.int64)
    picked[inverse] = labels
    mixed = np.flatnonzero(picked[inverse] != labels)
    if len(mixed):
        raise InputError(
            f"well {group_codes[mixed[0]]} holds images of two labels "
            f"(codes {picked[inverse[mixed[0]]]} and {labels[mixed[0]]})",
            fix="give each well one label, or score at image level",
        )
    return picked


def _groups(
    group_codes: Int[np.ndarray, " n"], num: int
) -> tuple[Int[np.ndarray, " g"], Int[np.ndarray, " n"], Int[np.ndarray, " g"]]:
    group_codes = np.asarray(group_codes)
    if group_codes.shape != (num,):
        raise InputError(
            f"{num} rows meet well codes of shape {group_codes.shape}",
            fix="give one well code for each row",
        )
    if (group_codes < 0).any():
        raise InputError(
            f"{int((group_codes < 0).sum())} rows have no well (code -1)",
            fix="give every scored row a well, or score at image level",
        )
    codes, inverse, counts = np.unique(group_codes, return_inverse=True, return_counts=True)
    return codes, inverse, counts
