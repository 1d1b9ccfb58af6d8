"""TVN: the negative controls become white, and each batch's own covariance of controls is undone.

Ando, McLean and Berndl, "Improving phenotypic measurements in high-content imaging screens",
bioRxiv 161422 (2017), in the form of Recursion's EFAAR benchmarks (Celik et al., PLOS Comput Biol
20:e1012463, 2024; https://github.com/recursionpharma/EFAAR_benchmarking, Apache-2.0):

1. standardise by all controls, 2. principal components of the controls, all of them,
3. standardise by all controls again, 4. CORAL: `z <- z (cov(controls of batch) + ridge I)^(-1/2)`

Where this file departs from EFAAR's code, and why:
    one matrix     The four steps are linear, so each batch gets one matrix, and rows are multiplied
                   once. Roots come from `eigh` of the smaller side, never from a fractional power.
    few controls   Components in which the controls do not vary (fewer controls than features) are
                   left out with a warning; there they are divided by rounding errors.
    signs          Of components are fixed; a sign changes no distance and no cosine.

As there, means of batches are left alone: put `standardise` by plate before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evenfield.correct.base import CORRECTORS, DomainCorrector, State, check_range, warn
from evenfield.correct.base.linear import principal, ridged_inverse_root, scatter
from evenfield.data.roles import some
from evenfield.errors import InputError


@CORRECTORS.register("tvn")
class TVN(DomainCorrector):
    """Typical variation normalisation with CORAL for each batch; the features become components.

    A batch never seen: step 4 from its own controls, steps 1 to 3 as fitted; without any control it
    is refused. A batch with a single control has no covariance and takes that of all controls after
    step 3, the identity, with a warning.
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
        # A feature that does not vary is centred only, as scikit-learn's scaler does, and then
        # has no share in any component.
        deviation = np.where(varies, deviation, 1.0)
        value, vector = principal(scatter(x, mean, deviation) / n, 1e-10)
        if len(value) < d:
            warn("tvn", f"{n} controls of rank {len(value)} for {d} features: only {len(value)} "
                        "components are kept")  # fmt: skip
        whiten = vector / np.sqrt(value) / deviation[:, None]
        return {"mean": mean, "whiten": whiten.astype(x.dtype)}

    def unit(self, pooled: State, reference: Float[np.ndarray, "m d"]) -> State:
        """The matrix (d, r) of steps 1 to 4 for a batch."""
        whiten = pooled["whiten"]
        m = len(reference)
        if self.config.domain is None:
            return {"matrix": whiten, "num": np.array(m)}
        if m == 1:
            return {"matrix": whiten / np.sqrt(1 + self.config.ridge), "num": np.array(m)}
        z = (reference - pooled["mean"].astype(whiten.dtype)) @ whiten
        root = ridged_inverse_root(z - z.mean(0), 1 / (m - 1), self.config.ridge)
        return {"matrix": whiten @ root, "num": np.array(m)}

    def announce(self, units: dict[str, State], names: tuple[str, ...]) -> None:
        """Name the batches with a single control."""
        single = [name for name, unit in units.items() if unit["num"] == 1]
        if single and self.config.domain is not None:
            warn("tvn", f"{len(single)} domain(s) ({some(single, 4)}) have a single control: the "
                        "covariance of all controls stands in for theirs")  # fmt: skip

    def move(self, pooled: State, unit: State, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """`(x - mean) @ matrix`."""
        return (x - pooled["mean"].astype(x.dtype)) @ unit["matrix"].astype(x.dtype, copy=False)

    def output_names(self, pooled: State, names: tuple[str, ...]) -> tuple[str, ...]:
        """Components have no names of their own."""
        return tuple(f"TVN_{i}" for i in range(pooled["whiten"].shape[1]))
