"""TVN: the negative controls become white, and each batch's own covariance of controls is undone.

Ando, McLean and Berndl, "Improving phenotypic measurements in high-content imaging screens",
bioRxiv 161422 (2017), in the form of Recursion's EFAAR benchmarks (Celik et al., PLOS Comput Biol
20:e1012463, 2024; https://github.com/recursionpharma/EFAAR_benchmarking, Apache-2.0):

1. standardise by all controls, 2. principal components of the controls, all of them,
3. standardise by all controls again, 4. CORAL: `z <- z (cov(controls of batch) + ridge I)^(-1/2)`

Where this file departs from EFAAR's code, and why:
    one matrix     The four steps are linear, so each batch gets one matrix, and rows are multiplied
                   once. Roots come from `eigh` of the smaller side, never from a fractional power.
    few controls   With no more controls than features there are components in which the controls do
                   not vary, and EFAAR divides by their rounding errors. Here their covariance is
                   shrunk towards the identity as Ledoit and Wolf say, with a warning. Likewise a
                   batch with no more controls than features: what its controls happen to vary in
                   is noise. Its covariance is mixed with the identity, which is typical after step
                   3, in the ratio of its controls to the number of features, with a warning.
    signs          Of components are fixed, and so is the basis of those in which no control varies;
                   neither changes a distance or a cosine, but medians of wells see the basis.

As there, means of batches are left alone: put `standardise` by plate before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evenfield.correct.base import CORRECTORS, DomainCorrector, State, check_range, some_names, warn
from evenfield.correct.base.linear import (
    principal,
    rank_of,
    ridged_inverse_root,
    scatter,
    settled,
    shrinkage,
)
from evenfield.data.roles import some
from evenfield.errors import InputError


@CORRECTORS.register("tvn")
class TVN(DomainCorrector):
    """Typical variation normalisation with CORAL for each batch; the features become components.

    A batch never seen: step 4 from its own controls, steps 1 to 3 as fitted; without any control it
    is refused.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(DomainCorrector.Config):
        """The settings of TVN.

        Attributes:
            domain: The column of the unit whose own covariance is undone; none = steps 1 to 3.
            ridge: Added to each batch's covariance, where the identity is typical; EFAAR takes 0.5.
        """

        domain: str | None = "Metadata_Batch"
        ridge: float = 0.5

        def __post_init__(self) -> None:
            check_range("ridge", self.ridge, 1e-6)

    def pool(self, references: Sequence[Float[np.ndarray, "m d"]], names: tuple[str, ...]) -> State:
        """Mean (d,) and the matrix (d, r) of steps 1 to 3."""
        x = np.concatenate(references)
        n, d = x.shape
        mean = x.mean(0, dtype=np.float64)
        deviation = x.std(0, dtype=np.float64)
        varies = deviation > 1e-12 * np.abs(mean)
        if not varies.any():
            raise InputError(
                f"tvn: no feature varies among the {n} controls", fix="give more negative controls"
            )
        if not varies.all():
            warn("tvn", f"{int((~varies).sum())} feature(s) do not vary among the {n} controls and "
                        f"have no share in a component: {some_names(names, ~varies)}")  # fmt: skip
        x, centre, scale = x[:, varies], mean[varies], deviation[varies]
        cov = scatter(x, centre, scale) / n
        value, vector = principal(cov)
        rank = rank_of(value)
        if n <= len(value) or rank < len(value):
            vector = settled(vector, rank)
            weight = max(shrinkage(x, centre, scale, cov), 1e-3)
            value = (1 - weight) * value + weight * value.mean()
            warn("tvn", f"{n} controls of rank {rank} for {len(value)} features: their covariance "
                        f"is shrunk by {weight:.2f} towards the identity")  # fmt: skip
        whiten = np.zeros((d, len(value)))
        whiten[varies] = vector / np.sqrt(value) / scale[:, None]
        return {"mean": mean, "whiten": whiten.astype(x.dtype)}

    def unit(self, pooled: State, reference: Float[np.ndarray, "m d"]) -> State:
        """The matrix (d, r) of steps 1 to 4 for a batch."""
        whiten, (m, r) = pooled["whiten"], (len(reference), pooled["whiten"].shape[1])
        if self.config.domain is None:
            return {"matrix": whiten, "num": np.array(m)}
        z = (reference - pooled["mean"].astype(whiten.dtype)) @ whiten
        share = 1.0 if m > r else (m - 1) / (m - 1 + r)
        ridge = self.config.ridge + 1 - share
        root = ridged_inverse_root(z - z.mean(0), share / max(m - 1, 1), ridge)
        return {"matrix": whiten @ root, "num": np.array(m)}

    def announce(self, units: dict[str, State], names: tuple[str, ...]) -> None:
        """Name the batches with few controls."""
        num = {name: int(unit["num"]) for name, unit in units.items()}
        r = next(iter(units.values()))["matrix"].shape[1]
        few = [name for name, m in num.items() if m <= r]
        if few and self.config.domain is not None:
            warn("tvn", f"{len(few)} domain(s) ({some(few, 4)}) have no more controls (the fewest: "
                        f"{min(num.values())}) than the {r} features: their covariances are shrunk "
                        "towards the identity")  # fmt: skip

    def move(self, pooled: State, unit: State, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """`(x - mean) @ matrix`."""
        return (x - pooled["mean"].astype(x.dtype)) @ unit["matrix"].astype(x.dtype, copy=False)

    def output_names(self, pooled: State, names: tuple[str, ...]) -> tuple[str, ...]:
        """Components have no names of their own."""
        return tuple(f"TVN_{i}" for i in range(pooled["whiten"].shape[1]))
