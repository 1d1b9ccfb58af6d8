"""Select features: what is missing, constant or told by another feature is left out.

The rules of pycytominer 1.7.1's `feature_select` (https://github.com/cytomining/pycytominer, BSD-3)
`drop_na_columns`, `variance_threshold` and `correlation_threshold`, in this order.

Where this file departs from pycytominer, and why:
    order          Each rule sees what the one before left; there all see the whole table, and a
                   pair of constants or of lost features counts in the correlations.
    ties           Of two features with equal sums of correlations the later name goes, whatever
                   the order of columns.
    nothing left   Is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from evenfield.correct.base import CORRECTORS, Corrector, State, check_range, keep_features
from evenfield.correct.base.linear import scatter
from evenfield.data.profiles import is_position
from evenfield.errors import InputError
from evenfield.types import Profiles


@CORRECTORS.register("select-features")
class SelectFeatures(Corrector):
    """Features that carry something, chosen on the rows of `fit`.

    A plate never seen: the same features. The only corrector that takes NaN: a feature with more of
    them than `nan` is left out; those that stay are not filled in.
    """

    accepts_nan = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Corrector.Config):
        """The settings of select-features.

        Attributes:
            nan: Largest share of rows of `fit` without a finite value.
            variance: Features with no more variance than this are left out.
            correlation: Of two features that correlate more than this, the one with more
                correlation to all others is left out; none = keep both.
            positions: Whether positions in the image, bounding boxes and object numbers are kept.
        """

        nan: float = 0.0
        variance: float = 1e-6
        correlation: float | None = 0.9
        positions: bool = False

        def __post_init__(self) -> None:
            check_range("nan", self.nan, 0, 1)
            check_range("variance", self.variance, 0)
            if self.correlation is not None:
                check_range("correlation", self.correlation, 0, 1)

    def learn(self, profiles: Profiles) -> State:
        """Which features stay (d,), and how many each rule left out."""
        config, x = self.config, profiles.features
        keep = np.ones(x.shape[1], dtype=bool)
        counts = {}
        if not config.positions:
            keep &= [not is_position(name) for name in profiles.names]
        counts["positions"] = int((~keep).sum())
        finite = np.isfinite(x)
        lost = (~finite).mean(0) > config.nan
        counts["NaN"] = int((keep & lost).sum())
        keep &= ~lost
        masked = x if finite.all() else np.where(finite, x, np.nan)
        with np.errstate(invalid="ignore"):
            variance = np.array(
                [_variance(masked[:, j]) if keep[j] else 0.0 for j in range(len(keep))]
            )
        counts["variance"] = int((keep & ~(variance > config.variance)).sum())
        keep &= variance > config.variance
        if config.correlation is not None and keep.any():
            names = [name for name, kept in zip(profiles.names, keep, strict=True) if kept]
            redundant = redundant_features(correlations(masked[:, keep]), config.correlation, names)
            counts["correlation"] = int(redundant.sum())
            keep[np.flatnonzero(keep)[redundant]] = False
        if not keep.any():
            raise InputError(
                f"select-features leaves none of {len(keep)} features: "
                + ", ".join(f"{count} for {rule}" for rule, count in counts.items()),
                fix="relax the rule that takes most, or look at the table",
            )
        return {"keep": keep}

    def map(self, profiles: Profiles) -> Profiles:
        """The features that stay."""
        return keep_features(profiles, self.state["keep"])


def _variance(x: Float[np.ndarray, " n"]) -> float:
    known = x[np.isfinite(x)]
    return float(known.var(dtype=np.float64)) if len(known) else 0.0


def correlations(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    """Pearson correlation of each pair of features, over the rows where both are known."""
    finite = np.isfinite(x)
    if finite.all():
        mean = x.mean(0, dtype=np.float64)
        total = scatter(x, mean, np.ones(x.shape[1]))
        length = np.sqrt(np.diag(total))
        return total / np.outer(length, length)
    # Sums over shared rows as products of matrices, about each feature's mean for precision.
    known = finite.astype(np.float64)
    y = np.where(finite, x - np.nanmean(np.where(finite, x, np.nan), axis=0), 0.0)
    num = np.maximum(known.T @ known, 1.0)
    sums, squares = y.T @ known, np.square(y).T @ known
    cov = y.T @ y - sums * sums.T / num
    variance = squares - sums**2 / num
    scale = np.sqrt(np.maximum(variance * variance.T, 0.0))
    return np.divide(cov, scale, out=np.zeros_like(cov), where=scale > 0)


def redundant_features(
    r: Float[np.ndarray, "d d"], threshold: float, names: list[str]
) -> Bool[np.ndarray, " d"]:
    """Of each pair with a correlation above the threshold, the one with the larger sum of |r|.

    Signs count, as in pycytominer: a feature that is another one's negative stays.

    >>> r = np.array([[1.0, 0.95, 0.3], [0.95, 1.0, 0.2], [0.3, 0.2, 1.0]])
    >>> redundant_features(r, 0.9, ["a", "b", "c"]).tolist()
    [True, False, False]
    """
    # Rounded, so that sums that are equal but for the order of additions tie.
    total = np.round(np.abs(r).sum(0), 9)
    order = sorted(range(len(names)), key=lambda j: (total[j], names[j]))
    rank = np.empty(len(names), dtype=int)
    rank[order] = np.arange(len(names))
    later = rank[:, None] > rank[None, :]
    return np.any((r > threshold) & later, axis=1)
