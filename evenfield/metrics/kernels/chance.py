"""What names without meaning score: the same value after shuffling them over the profiles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from evenfield.seeds import numpy_generator

NUM_SHUFFLES = 5


def shuffled(
    value: Callable[[Int[np.ndarray, " n"]], float], code: Int[np.ndarray, " n"], purpose: str
) -> float:
    """The mean value over five random orders of the codes: what labels without meaning score."""
    rng = numpy_generator(0, purpose, "shuffled")
    return float(np.mean([value(rng.permutation(code)) for _ in range(NUM_SHUFFLES)]))


def neighbour_counts(
    code: Int[np.ndarray, "n k"], num_codes: int, weight: Float[np.ndarray, "n k"] | None = None
) -> Float[np.ndarray, "n c"]:
    """How often (or with what weight) each code occurs among the neighbours of each row.

    >>> neighbour_counts(np.array([[0, 1, 1]]), 3).tolist()
    [[1.0, 2.0, 0.0]]
    """
    num = len(code)
    place = np.arange(num)[:, None] * num_codes + code
    weights = None if weight is None else weight.ravel()
    total = np.bincount(place.ravel(), weights, minlength=num * num_codes)
    return total.reshape(num, num_codes).astype(np.float64)
