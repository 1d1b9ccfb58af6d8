"""CORAL: each batch's controls get the mean and covariance of the controls of all batches.

Sun, Feng and Saenko, "Return of frustratingly easy domain adaptation", AAAI 2016,
https://arxiv.org/abs/1511.05547: whiten by the source's covariance, colour by the target's. Here
the source is one batch, the target all batches, and both are known by their negative controls.

Where this file departs from the paper, and why:
    means          Are aligned, too: batches differ most in their mean.
    target         The covariance within batches, pooled: offsets between batches are no biology.
    shrinkage      The paper adds the identity to covariances, which depends on units. Here a
                   batch's covariance is shrunk towards the pooled one, as if that had been seen on
                   `prior` further controls; a batch with few controls is little more than shifted.
    root           The batch's root is taken in the space where the pooled controls are white, so
                   that the units of features do not matter. The result has the pooled covariance,
                   as the paper's has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evenfield.correct.base import (
    CORRECTORS,
    DomainCorrector,
    State,
    check_range,
    some_names,
    warn,
)
from evenfield.correct.base.linear import (
    power,
    principal,
    rank_of,
    ridged_inverse_root,
    scatter,
    shrinkage,
    towards_identity,
)
from evenfield.errors import InputError


@CORRECTORS.register("coral")
class CORAL(DomainCorrector):
    """`(x - mean_b) C_b^(-1/2) C^(1/2) + mean`: the features keep their names and units.

    A batch never seen: from its own controls; without any it is refused. With no more controls than
    features the pooled covariance is shrunk as Ledoit and Wolf say, with a warning. A feature
    without variance within batches is shifted only.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(DomainCorrector.Config):
        """The settings of CORAL.

        Attributes:
            domain: The column of the unit that is aligned to all others.
            prior: How many controls the pooled covariance counts for in each batch; none = as many
                as there are features.
        """

        domain: str | None = "Metadata_Batch"
        prior: float | None = None

        def __post_init__(self) -> None:
            if self.prior is not None:
                check_range("prior", self.prior, 1e-3)

    def pool(self, references: Sequence[Float[np.ndarray, "m d"]], names: tuple[str, ...]) -> State:
        """The pooled mean (d,) and the roots (d, d) of the covariance within batches."""
        means = [x.mean(0, dtype=np.float64) for x in references]
        residual = np.concatenate([x - m for x, m in zip(references, means, strict=True)])
        n, d = residual.shape
        spare = n - len(references)
        if spare < 1:
            raise InputError(
                f"coral: {n} controls in {len(references)} domain(s) have no covariance",
                fix="give at least two controls in a domain, or set reference='all'",
            )
        mean = np.concatenate(references).mean(0, dtype=np.float64)
        deviation = np.sqrt(np.square(residual).sum(0) / spare)
        varies = deviation > 1e-12 * np.max(np.abs(means), axis=0)
        if not varies.any():
            raise InputError(
                f"coral: no feature varies among the {n} controls of a domain",
                fix="give more negative controls, or set reference='all'",
            )
        if not varies.all():
            warn("coral", f"{int((~varies).sum())} feature(s) do not vary among the controls of a "
                          f"domain and are shifted only: {some_names(names, ~varies)}")  # fmt: skip
        inverse, forward = np.zeros((d, d)), np.zeros((d, d))
        inside = np.ix_(varies, varies)
        inverse[inside], forward[inside] = self._roots(
            residual[:, varies], deviation[varies], len(references)
        )
        return {"mean": mean, "inverse": inverse, "forward": forward, "fixed": ~varies}

    def unit(self, pooled: State, reference: Float[np.ndarray, "m d"]) -> State:
        """Mean (d,) and matrix (d, d) of a batch."""
        m, d = reference.shape
        prior = self.config.prior if self.config.prior is not None else float(d)
        mean = reference.mean(0, dtype=np.float64)
        share = (m - 1) / (m - 1 + prior)
        z = (reference - mean) @ pooled["inverse"]
        root = ridged_inverse_root(z, share / max(m - 1, 1), 1 - share)
        matrix = pooled["inverse"] @ root @ pooled["forward"]
        matrix[pooled["fixed"], pooled["fixed"]] = 1.0
        return {"mean": mean, "matrix": matrix.astype(reference.dtype)}

    def move(self, pooled: State, unit: State, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """`(x - mean_b) @ matrix_b + mean`."""
        moved = (x - unit["mean"].astype(x.dtype)) @ unit["matrix"].astype(x.dtype, copy=False)
        moved += pooled["mean"].astype(x.dtype)
        return moved

    def _roots(
        self, residual: np.ndarray, deviation: np.ndarray, num: int
    ) -> tuple[np.ndarray, np.ndarray]:
        n, d = residual.shape
        zero = np.zeros(d)
        cov = scatter(residual, zero, deviation) / (n - num)
        rank = rank_of(principal(cov)[0])
        if n - num <= d or rank < d:
            weight = max(shrinkage(residual, zero, deviation, cov * (n - num) / n), 1e-3)
            warn("coral", f"{n} controls of rank {rank} for {d} features: their covariance is "
                          f"shrunk by {weight:.2f} towards the identity")  # fmt: skip
            cov = towards_identity(cov, weight)
        return power(cov, -0.5) / deviation[:, None], power(cov, 0.5) * deviation
