"""Regress out: what cell count and plate position explain of the controls is taken from every row.

An ordinary linear model of each feature on covariates, with an intercept for each plate, fitted on
reference rows; only the covariates' part is taken off. The practice is common (the recipes of
JUMP-CP regress out cell count and well position); there is no paper to follow.

    range          A covariate beyond the range that it has in the reference rows is clipped to it,
                   with a warning: a straight line is not known to go on.
    intercepts     Keep plate offsets out of the slopes; plates themselves are not corrected here.
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
    domain_rows,
    numbers,
    reference_rows,
    warn,
)
from evenfield.correct.base.columns import column
from evenfield.data.names import normalise_well
from evenfield.errors import InputError
from evenfield.types import Profiles


@CORRECTORS.register("regress-out")
class RegressOut(Corrector):
    """`x - slope (covariate - mean)`, slopes fitted on the negative controls of all plates.

    A plate never seen: the same slopes. A covariate that does not vary among the reference rows of
    any plate has slope 0, with a warning; if none varies, it is refused.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Corrector.Config):
        """The settings of regress-out.

        Attributes:
            covariates: Columns of numbers whose linear effect is taken out.
            position: Whether row and column of the well, and their squares, are taken out, too.
            domain: The column of the unit that gets an intercept of its own; none = one for all.
            control: The column that says which rows are negative controls.
            reference: Whether the `controls` or `all` rows give the slopes.
        """

        covariates: tuple[str, ...] = ("Metadata_CellCount",)
        position: bool = False
        domain: str | None = "Metadata_Plate"
        control: str = "Metadata_ControlType"
        reference: Literal["controls", "all"] = "controls"

    def learn(self, profiles: Profiles) -> State:
        """Slopes (p, d), and of each covariate mean, deviation and range (p,)."""
        config = self.config
        wanted = reference_rows(profiles, config.reference, config.control)
        names, design = self._design(profiles)
        seen = design[wanted]
        domains = domain_rows(profiles, config.domain)
        every = np.arange(len(profiles))
        batches = [rows for unit in domains.values() if len(rows := every[unit][wanted[unit]])]
        if len(seen) <= len(batches) + len(names):
            raise InputError(
                f"regress-out: {len(seen)} reference row(s) in {len(batches)} domain(s) cannot "
                f"give {len(names)} slopes",
                fix="give more controls, fewer covariates, or set reference='all'",
            )
        mean, spread = seen.mean(0), seen.std(0)
        low, high = seen.min(0), seen.max(0)
        scaled = (design - mean) / np.where(spread > 0, spread, 1.0)
        gram = np.zeros((len(names),) * 2)
        cross = np.zeros((len(names), profiles.features.shape[1]))
        for rows in batches:
            inside = scaled[rows] - scaled[rows].mean(0)
            x = profiles.features[rows]
            gram += inside.T @ inside
            cross += inside.T @ (x - x.mean(0, dtype=np.float64))
        varies = np.diag(gram) > 1e-12 * len(seen)
        if not varies.any():
            raise InputError(
                f"regress-out: none of {', '.join(names)} varies among the {len(seen)} reference "
                "rows of a domain",
                fix="choose other covariates, or set reference='all'",
            )
        if not varies.all():
            flat = [name for name, fine in zip(names, varies, strict=True) if not fine]
            warn("regress-out", f"{', '.join(flat)} do(es) not vary among the reference rows and "
                                "is not taken out")  # fmt: skip
        # The pseudo-inverse shares an effect among covariates that say the same.
        slope = np.linalg.pinv(gram, rcond=1e-10, hermitian=True) @ cross
        return {"slope": slope, "mean": mean, "spread": spread, "low": low, "high": high}

    def map(self, profiles: Profiles) -> Profiles:
        """`x - slope (clipped covariate - mean) / spread`."""
        state = self.state
        names, design = self._design(profiles)
        clipped = np.clip(design, state["low"], state["high"])
        room = 1e-9 * (state["high"] - state["low"])
        for index, name in enumerate(names):
            beyond = int((np.abs(design[:, index] - clipped[:, index]) > room[index]).sum())
            if beyond:
                warn(
                    "regress-out",
                    f"{beyond} of {len(profiles)} rows have {name} outside of "
                    f"{state['low'][index]:.6g} to {state['high'][index]:.6g}, the range of the "
                    "reference rows, and are corrected as at its end",
                )
        scaled = (clipped - state["mean"]) / np.where(state["spread"] > 0, state["spread"], 1.0)
        effect = scaled @ state["slope"]
        return profiles.with_features(
            (profiles.features - effect).astype(profiles.features.dtype, copy=False)
        )

    def _design(self, profiles: Profiles) -> tuple[list[str], Float[np.ndarray, "n p"]]:
        names = list(self.config.covariates)
        columns = [numbers(profiles, name) for name in names]
        if self.config.position:
            wells = [
                position(normalise_well(well))
                for well in column(profiles, "Metadata_Well", "position in the plate")
            ]
            row, col = np.array(wells, dtype=float).T
            names += ["well row", "well row squared", "well column", "well column squared"]
            columns += [row, row**2, col, col**2]
        if not columns:
            raise InputError(
                "regress-out has nothing to take out", fix="name covariates or set position=True"
            )
        return names, np.stack(columns, axis=1)


def position(well: str) -> tuple[int, int]:
    """Row and column, from 1, of a normalised well.

    >>> position("A01"), position("P24"), position("AF48")
    ((1, 1), (16, 24), (32, 48))
    """
    letters, number = well[:-2], int(well[-2:])
    row = ord(letters[-1]) - 64 + (26 * (ord(letters[0]) - 64) if len(letters) == 2 else 0)
    return row, number
