"""Centre and spread of each domain's reference rows: what standardise and mad-robustize share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from evenfield.correct.base.contract import State, some_names, warn
from evenfield.correct.base.domains import DomainCorrector
from evenfield.data.roles import some
from evenfield.errors import InputError


class ScaleByDomain(DomainCorrector):
    """`(x - centre) / spread`, both of the domain's reference rows.

    A spread of zero is no scale. A feature without spread in one domain takes the spread that is
    pooled over all domains of `fit`; a feature without any pooled spread is left out of the
    profiles; both with a warning that names features and domains.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(DomainCorrector.Config):
        """The settings.

        Attributes:
            scale: Divide by the spread of the `domain`, by one spread `pooled` over the domains
                (for few controls a plate), or by `none`: centre only.
        """

        scale: Literal["domain", "pooled", "none"] = "domain"

    @abstractmethod
    def centre(self, x: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " d"]:
        """The middle of reference rows."""

    @abstractmethod
    def spread(self, residual: Float[np.ndarray, "m d"], lost: int) -> Float[np.ndarray, " d"]:
        """The spread of rows whose centre is 0; `lost` centres were estimated from them."""

    def pool(self, references: Sequence[Float[np.ndarray, "m d"]], names: tuple[str, ...]) -> State:
        """The pooled spread (d,) and which features have one."""
        if self.config.scale == "none":
            ones = np.ones(len(names))
            return {"keep": ones.astype(bool), "spread": ones}
        centres = [self.centre(x) for x in references]
        residuals = np.concatenate(
            [x - c.astype(x.dtype) for x, c in zip(references, centres, strict=True)]
        )
        size = np.max(np.abs(centres), axis=0)
        single = len(residuals) == len(references)  # one row a domain: every residual is 0
        spread = np.zeros(len(names)) if single else self.spread(residuals, len(references))
        keep = ~is_flat(spread, size)
        if not keep.any():
            raise InputError(
                f"{self.name}: no feature varies among the reference rows of a domain "
                f"({len(residuals)} rows in {len(references)} domains)",
                fix="give more controls, set reference='all', or centre only with scale='none'",
            )
        if not keep.all():
            warn(
                self.name,
                f"{int((~keep).sum())} feature(s) do not vary among the reference rows of any "
                f"domain and are left out: {some_names(names, ~keep)}",
            )
        return {"keep": keep, "spread": np.where(keep, spread, 1.0)}

    def unit(self, pooled: State, reference: Float[np.ndarray, "m d"]) -> State:
        """Centre and spread (d,) of a domain, and which features take the pooled spread."""
        centre = self.centre(reference)
        flat = np.zeros(len(centre), dtype=bool)
        spread = pooled["spread"]
        if self.config.scale == "domain":
            own = self.spread(reference - centre.astype(reference.dtype), 0)
            flat = is_flat(own, np.abs(centre)) & pooled["keep"]
            spread = np.where(flat | ~pooled["keep"], spread, own)
        return {"centre": centre, "spread": spread, "flat": flat}

    def announce(self, units: dict[str, State], names: tuple[str, ...]) -> None:
        """Name the domains and features that took the pooled spread."""
        where = [name for name, unit in units.items() if unit["flat"].any()]
        if where:
            flat = np.any([unit["flat"] for unit in units.values()], axis=0)
            warn(
                self.name,
                f"{int(flat.sum())} feature(s) do not vary among the reference rows of "
                f"{len(where)} domain(s) ({some(where, 4)}) and take the pooled spread there: "
                f"{some_names(names, flat)}",
            )

    def move(self, pooled: State, unit: State, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """`(x - centre) / spread` for the features that have a spread."""
        keep = pooled["keep"]
        moved = x - unit["centre"]
        moved /= unit["spread"]
        return moved if keep.all() else moved[:, keep]

    def output_names(self, pooled: State, names: tuple[str, ...]) -> tuple[str, ...]:
        """The features that have a spread."""
        return tuple(name for name, kept in zip(names, pooled["keep"], strict=True) if kept)


def is_flat(spread: Float[np.ndarray, " d"], size: Float[np.ndarray, " d"]) -> np.ndarray:
    """Whether a spread is zero but for rounding, for values of a given size."""
    return ~(spread > 1e-12 * size)
