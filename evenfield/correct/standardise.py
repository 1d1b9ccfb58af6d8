"""Standardise: every plate's features are centred and scaled by its own negative controls.

The plain z-score by plate, as in pycytominer's `normalize(method="standardize")`
(https://github.com/cytomining/pycytominer, BSD-3), to which the map equals where the controls vary.

Where this file departs from pycytominer, and why:
    few controls   `scale="pooled"` divides by one spread over all plates and `scale="none"` only
                   centres: six controls give a centre, but no scale worth dividing by.
    no spread      A feature that does not vary among the controls is named, see `ScaleByDomain`;
                   a scale of 1 would silently mix units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evenfield.correct.base import CORRECTORS, ScaleByDomain


@CORRECTORS.register("standardise")
class Standardise(ScaleByDomain):
    """Mean 0 and standard deviation 1 of each plate's controls.

    A plate never seen: from its own controls; without any it is refused. The deviation is that of
    the population (divided by m), as in scikit-learn; the pooled one is divided by rows - plates.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ScaleByDomain.Config):
        """The settings of standardise."""

    def centre(self, x: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " d"]:
        """The mean."""
        return x.mean(0, dtype=np.float64)

    def spread(self, residual: Float[np.ndarray, "m d"], lost: int) -> Float[np.ndarray, " d"]:
        """The standard deviation about 0."""
        return np.sqrt(np.square(residual).sum(0, dtype=np.float64) / (len(residual) - lost))
