"""Sphering: features are rotated and scaled until the negative controls have covariance identity.

Kessy, Lewin and Strimmer, "Optimal whitening and decorrelation", The American Statistician 72:309
(2018), https://arxiv.org/abs/1512.00809; on controls as in pycytominer's `spherize` (BSD-3), from
version 1.7.1 on (1.3.1 to 1.7.0 did not centre and so did not whiten).

Where this file departs from the paper or from pycytominer, and why:
    epsilon        Added to the eigenvalues of the covariance (of the correlation for `zca-cor`),
                   so that it means the same for any number of rows; pycytominer adds it to
                   singular values.
    few controls   With no more control rows than features (or features that depend on each other)
                   the covariance has no inverse, and dividing by its smallest eigenvalues makes
                   noise the signal. It is shrunk towards the identity as Ledoit and Wolf say, or
                   with few="reduce" only its own directions are kept; both with a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from evenfield.correct.base import (
    CORRECTORS,
    Corrector,
    State,
    check_range,
    keep_features,
    reference_rows,
    some_names,
    warn,
)
from evenfield.correct.base.linear import (
    principal,
    rank_of,
    scatter,
    settled,
    shrinkage,
    towards_identity,
)
from evenfield.errors import InputError
from evenfield.types import Profiles


@CORRECTORS.register("sphering")
class Sphering(Corrector):
    """Whitening by the covariance of the negative controls of all plates together.

    A plate never seen: the same map (it knows no plates; standardise by plate before it).
    A feature that does not vary among the controls is left out, with a warning.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Corrector.Config):
        """The settings of sphering.

        Attributes:
            control: The column that says which rows are negative controls.
            reference: Whether the `controls` or `all` rows give the covariance.
            kind: `zca` stays closest to the features, `zca-cor` to the standardised features, `pca`
                gives principal components.
            epsilon: Added to each eigenvalue: directions of less variance are not blown up.
            few: With no more rows than features: `shrink` the covariance, or `reduce` it to the
                directions that the rows span.
        """

        control: str = "Metadata_ControlType"
        reference: Literal["controls", "all"] = "controls"
        kind: Literal["zca", "zca-cor", "pca"] = "zca"
        epsilon: float = 1e-6
        few: Literal["shrink", "reduce"] = "shrink"

        def __post_init__(self) -> None:
            check_range("epsilon", self.epsilon, 0)

    def learn(self, profiles: Profiles) -> State:
        """Mean (d,) and matrix (d, e): `(x - mean) @ matrix` is white on the references."""
        config = self.config
        x = profiles.features[reference_rows(profiles, config.reference, config.control)]
        if len(x) < 2:
            raise InputError(
                f"sphering: {len(x)} reference row(s) have no covariance",
                fix="give more negative controls, or set reference='all'",
            )
        mean = x.mean(0, dtype=np.float64)
        deviation = x.std(0, dtype=np.float64, ddof=1)
        keep = deviation > 1e-12 * np.abs(mean)
        if not keep.any():
            raise InputError(
                f"sphering: no feature varies among the {len(x)} reference rows",
                fix="check the table, or set reference='all'",
            )
        if not keep.all():
            warn(
                "sphering",
                f"{int((~keep).sum())} feature(s) do not vary among the {len(x)} reference rows "
                f"and are left out: {some_names(profiles.names, ~keep)}",
            )
        matrix = self._matrix(x[:, keep], mean[keep], deviation[keep])
        return {"mean": mean, "keep": keep, "matrix": matrix}

    def map(self, profiles: Profiles) -> Profiles:
        """`(x - mean) @ matrix`."""
        profiles = keep_features(profiles, self.state["keep"])
        matrix = self.state["matrix"]
        dtype = profiles.features.dtype
        shift = self.state["mean"][self.state["keep"]]
        out = (profiles.features - shift.astype(dtype)) @ matrix.astype(dtype)
        names = profiles.names
        if self.config.kind == "pca":
            names = tuple(f"Sphering_{i}" for i in range(out.shape[1]))
        return profiles.with_features(out, names)

    def _matrix(
        self,
        x: Float[np.ndarray, "n d"],
        mean: Float[np.ndarray, " d"],
        deviation: Float[np.ndarray, " d"],
    ) -> Float[np.ndarray, "d e"]:
        config = self.config
        n, d = x.shape
        # Decomposed in units of each feature's deviation, so that rank does not hang on units.
        correlation = scatter(x, mean, deviation) / (n - 1)
        rank = rank_of(principal(correlation)[0])
        short = n <= d or rank < d
        unit = deviation if config.kind == "zca-cor" else np.ones(d)
        cov = correlation * np.outer(deviation / unit, deviation / unit)
        if short and config.few == "shrink":
            biased = cov * (n - 1) / n
            weight = max(shrinkage(x, mean, unit, biased), 1e-3)
            cov = towards_identity(cov, weight)
        if short:
            what = (
                f"the covariance is shrunk by {weight:.2f} towards the identity"
                if config.few == "shrink"
                else f"only {rank} directions are kept"
            )
            warn("sphering", f"{n} reference rows of rank {rank} for {d} features: {what}")
        value, vector = principal(cov)
        if short and config.few == "reduce":
            value, vector = value[:rank], vector[:, :rank]
        elif short and config.kind == "pca":
            vector = settled(vector, rank)
        whiten = vector / np.sqrt(value + config.epsilon)
        if config.kind != "pca":
            whiten = whiten @ vector.T
        return whiten / unit[:, None]
