"""Inverse normal: every feature's values are replaced by the normal scores of their ranks.

Beasley, Erickson and Allison, "Rank-based inverse normal transformations are increasingly used, but
are they merited?", Behav Genet 39:580 (2009); over all plates together, as in Arevalo et al., Nat
Commun 15:6516 (2024).

`z = Phi^-1((rank - c) / (n - 2 c + 1))`, `c = 3/8` (Blom)

Where this file departs from Arevalo's code, and why:
    ties           Share their mean rank; there they are broken at random.
    new values     Between two values of `fit` the score is interpolated, beyond them it is that of
                   the first or the last; there only the rows of `fit` have a rank.
    many rows      No more than `knots` values of a feature are kept, at evenly spaced scores, so
                   that no score is further off than the step between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from evenfield.correct.base import CORRECTORS, Corrector, State, check_range
from evenfield.types import Profiles


@CORRECTORS.register("inverse-normal")
class InverseNormal(Corrector):
    """Normal scores of ranks among all rows of `fit`.

    A plate never seen: the same map (it knows no plates; centre plates before it). A feature that
    does not vary becomes 0.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Corrector.Config):
        """The settings of inverse-normal.

        Attributes:
            c: Offset of ranks: 3/8 (Blom), 0 (van der Waerden), 1/2 (Hazen).
            knots: Most values of a feature that are kept.
        """

        c: float = 0.375
        knots: int = 4096

        def __post_init__(self) -> None:
            check_range("c", self.c, 0, 0.5)
            check_range("knots", self.knots, 2)

    def learn(self, profiles: Profiles) -> State:
        """Values (d, m), rising, and their normal scores (d, m); rows are padded by their last."""
        n, d = profiles.features.shape
        curves = []
        for j in range(d):
            value, rank = mean_ranks(profiles.features[:, j])
            curves.append(thinned(value, normal_score(rank, n, self.config.c), self.config.knots))
        longest = max(len(value) for value, _ in curves)
        values = np.empty((d, longest), dtype=profiles.features.dtype)
        scores = np.empty((d, longest), dtype=np.float32)
        for j, (value, score) in enumerate(curves):
            values[j, : len(value)], values[j, len(value) :] = value, value[-1]
            scores[j, : len(value)], scores[j, len(value) :] = score, score[-1]
        return {"values": values, "scores": scores}

    def map(self, profiles: Profiles) -> Profiles:
        """The score at each value, linear between the values of `fit`."""
        out = np.empty_like(profiles.features)
        for j, (value, score) in enumerate(
            zip(self.state["values"], self.state["scores"], strict=True)
        ):
            out[:, j] = np.interp(profiles.features[:, j], value, score)
        return profiles.with_features(out)


def mean_ranks(x: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, rising, and the mean rank (from 1) of each.

    >>> [part.tolist() for part in mean_ranks(np.array([3.0, 1.0, 3.0]))]
    [[1.0, 3.0], [1.0, 2.5]]
    """
    value, count = np.unique(x, return_counts=True)
    return value, np.cumsum(count) - (count - 1) / 2


def thinned(value: np.ndarray, score: np.ndarray, knots: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `knots` of the values, the first and the last among them, evenly spaced in score."""
    if len(value) <= knots:
        return value, score
    kept = np.unique(np.searchsorted(score, np.linspace(score[0], score[-1], knots)))
    return value[kept], score[kept]


def normal_score(rank: np.ndarray, n: int, c: float) -> np.ndarray:
    """`Phi^-1((rank - c) / (n - 2 c + 1))`.

    >>> normal_score(np.array([1.0, 2.0, 3.0]), 3, 0.375).round(3).tolist()
    [-0.869, 0.0, 0.869]
    """
    return ndtri((rank - c) / (n - 2 * c + 1))
