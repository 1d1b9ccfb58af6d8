"""ComBat: each batch's mean and variance of every feature are shrunk over features and taken out.

Johnson, Li and Rabinovic, "Adjusting batch effects in microarray expression data using empirical
Bayes methods", Biostatistics 8:118 (2007), parametric priors.

Where this file departs from the paper or from the code of others, and why:
    new batches    The paper has none. A new batch is one more batch in the last step: its location
                   and scale against the stored mean, variance and covariate effects, with priors
                   over its own features. A batch of `fit` that comes again under a new name is
                   corrected exactly as in `fit`.
    single rows    Have no variance; the prior of the scale is that of the other batches.
    one batch      Nothing to compare with: it is returned as it is (the code of others divides by
                   the square root of n / (n - 1)) and serves as the reference of new batches.
    sums           Iterations need each batch's mean and sum of squares only, so rows are read twice
                   and never copied as a whole.
    flat features  Do not enter the priors and are returned as they are, with a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from evenfield.correct.base import (
    CORRECTORS,
    Corrector,
    State,
    Unseen,
    domain_rows,
    reference_rows,
    some_names,
    warn,
)
from evenfield.correct.base.columns import Rows, column, numbers
from evenfield.data.names import as_text
from evenfield.data.roles import some
from evenfield.errors import InputError
from evenfield.types import Profiles

Row = Float[np.ndarray, " d"]
BLOCK = 128


@CORRECTORS.register("combat")
class ComBat(Corrector):
    """Location and scale by batch with empirical Bayes priors, and covariates that are kept.

    A batch never seen: location and scale are estimated from its rows (its controls with
    reference="controls") against the stored mean, variance and covariate effects; without such a
    row, or with an unknown value of a covariate, it is refused. A covariate that the batches
    determine is refused in `fit`.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Corrector.Config):
        """The settings of ComBat.

        Attributes:
            domain: The column of the batch.
            control: The column that says which rows are negative controls.
            reference: Whether `all` rows or only `controls` estimate location and scale.
            covariates: Columns whose effect is kept: words are levels, numbers are linear.
        """

        domain: str = "Metadata_Batch"
        control: str = "Metadata_ControlType"
        reference: Literal["controls", "all"] = "all"
        covariates: tuple[str, ...] = ()

    @property
    def unseen(self) -> Unseen:
        """The new batch's rows, or its controls."""
        return "controls" if self.config.reference == "controls" else "rows"

    def learn(self, profiles: Profiles) -> State:
        """Mean and deviation (d,), covariate effects (p, d), location and scale (b, d)."""
        levels = _levels(profiles, self.config.covariates)
        state: State = {f"levels.{i}": level for i, level in enumerate(levels)}
        design = _design(profiles, self.config.covariates, levels)
        batches = self._references(profiles, domain_rows(profiles, self.config.domain))
        x = profiles.features
        effect = self._effects(x, design, batches)
        found = {name: moments(x, design, rows, effect) for name, rows in batches.items()}
        num = sum(batch.n for batch in found.values())
        if num == len(found):
            raise InputError(
                f"combat: each of the {num} batches has a single row: there is no variance",
                fix="give batches with at least two rows, or another `domain`",
            )
        mean = np.sum([batch.n * batch.mean for batch in found.values()], axis=0) / num
        variance = np.sum([batch.square for batch in found.values()], axis=0) / num
        size = np.max([np.abs(batch.mean) for batch in found.values()], axis=0)
        flat = ~(np.sqrt(variance) > 1e-12 * size)
        if flat.any():
            warn(
                "combat",
                f"{int(flat.sum())} feature(s) do not vary within batches and stay as they are: "
                f"{some_names(profiles.names, flat)}",
            )
        deviation = np.sqrt(np.where(flat, 1.0, variance))
        state |= {"mean": mean, "deviation": deviation, "flat": flat, "effect": effect}
        state["prior"] = self._scale_prior(found, deviation, flat)
        state["domains"] = np.array(list(found), dtype=np.str_)
        solved = [self._solved(batch, state, alone=len(found) == 1) for batch in found.values()]
        state["location"] = np.stack([location for location, _ in solved])
        state["scale"] = np.stack([scale for _, scale in solved])
        return state

    def map(self, profiles: Profiles) -> Profiles:
        """`(x - m - deviation location) / sqrt(scale) + m`, with m = mean + covariates effect.

        In the order `(x - covariates effect) factor + shift + covariates effect`, block by block.
        """
        state, x = self.state, profiles.features
        levels = [state[f"levels.{i}"] for i in range(len(self.config.covariates))]
        design = _design(profiles, self.config.covariates, levels)
        domains = domain_rows(profiles, self.config.domain)
        place = {str(name): index for index, name in enumerate(state["domains"])}
        fresh = {name: rows for name, rows in domains.items() if name not in place}
        rows_of = self._references(profiles, fresh)
        out = np.empty_like(x)
        for name, rows in domains.items():
            if name in place:
                location, scale = state["location"][place[name]], state["scale"][place[name]]
            else:
                batch = moments(x, design, rows_of[name], state["effect"])
                location, scale = self._solved(batch, state, alone=False)
            factor = 1 / np.sqrt(scale)
            shift = state["mean"] * (1 - factor) - state["deviation"] * location * factor
            for part in blocks(np.arange(len(x))[rows]):
                known = design[part] @ state["effect"] if design.shape[1] else 0.0
                moved = x[part] - known
                moved = moved * factor
                moved += shift + known
                out[part] = moved
        out[:, state["flat"]] = x[:, state["flat"]]
        return profiles.with_features(out)

    def _references(self, profiles: Profiles, domains: dict[str, Rows]) -> dict[str, np.ndarray]:
        if not domains:
            return {}
        wanted = reference_rows(profiles, self.config.reference, self.config.control)
        every = np.arange(len(profiles))
        found = {name: every[rows][wanted[rows]] for name, rows in domains.items()}
        empty = [name for name, rows in found.items() if not len(rows)]
        if empty:
            raise InputError(
                f"combat: {len(empty)} batch(es) ({some(empty, 4)}) have no negative control in "
                f"{self.config.control}",
                fix="leave these rows out, or set reference='all'",
            )
        return found

    def _effects(
        self, x: np.ndarray, design: np.ndarray, batches: dict[str, np.ndarray]
    ) -> Float[np.ndarray, "p d"]:
        """Least squares on what varies within batches; refuses covariates that do not."""
        gram, cross = np.zeros((design.shape[1],) * 2), np.zeros((design.shape[1], x.shape[1]))
        if design.shape[1]:
            for rows in batches.values():
                inside = design[rows] - design[rows].mean(0)
                gram += inside.T @ inside
                cross += inside.T @ (x[rows] - x[rows].mean(0, dtype=np.float64))
            length = np.sqrt(np.diag(gram))
            length = np.where(length > 1e-9 * np.abs(design).max(0), length, np.inf)
            value = np.linalg.eigvalsh(gram / np.outer(length, length))
            if value[0] < 1e-9:
                raise InputError(
                    f"combat: the batches ({self.config.domain}) determine the covariates "
                    f"{', '.join(self.config.covariates)} or some of their levels (or these each "
                    "other): their effect cannot be told from that of the batches",
                    fix="leave the confounded covariate out, or correct with controls only "
                    "(reference='controls' and no covariates)",
                )
        return np.linalg.solve(gram, cross)

    @staticmethod
    def _scale_prior(
        found: dict[str, Moments], deviation: Row, flat: np.ndarray
    ) -> Float[np.ndarray, " 2"]:
        """Mean and variance of the scales of all batches with two rows or more."""
        several = [batch for batch in found.values() if batch.n > 1]
        scales = np.stack([b.square / (b.n - 1) / deviation**2 for b in several])[:, ~flat]
        return np.array([scales.mean(), scales.var()]) if scales.size else np.ones(2)

    @staticmethod
    def _solved(batch: Moments, state: State, *, alone: bool) -> tuple[Row, Row]:
        location, scale = np.zeros_like(batch.mean), np.ones_like(batch.mean)
        vary = ~state["flat"]
        if alone or not vary.any():
            return location, scale
        deviation = state["deviation"][vary]
        gamma = (batch.mean[vary] - state["mean"][vary]) / deviation
        square = batch.square[vary] / deviation**2
        if batch.n > 1:
            delta = square / (batch.n - 1)
            moment = delta.mean(), delta.var(ddof=1) if len(delta) > 1 else 0.0
        else:
            moment = state["prior"][0], state["prior"][1]
        location[vary], scale[vary] = posterior(gamma, square, batch.n, *map(float, moment))
        return location, scale


class Moments(NamedTuple):
    """What is needed of a batch: rows, mean without covariates (d,), squares about it (d,)."""

    n: int
    mean: Row
    square: Row


def moments(
    x: Float[np.ndarray, "n d"],
    design: Float[np.ndarray, "n p"],
    rows: np.ndarray,
    effect: Float[np.ndarray, "p d"],
) -> Moments:
    """Mean of `x - design effect` over some rows, and the sum of squares about it.

    >>> x = np.array([[1.0], [3.0]])
    >>> found = moments(x, np.zeros((2, 0)), np.array([0, 1]), np.zeros((0, 1)))
    >>> found.n, found.mean.tolist(), found.square.tolist()
    (2, [2.0], [2.0])
    """

    def residuals() -> Iterator[Float[np.ndarray, "m d"]]:
        for part in blocks(rows):
            block = x[part].astype(np.float64)
            yield block - design[part] @ effect if design.shape[1] else block

    mean = sum((block.sum(0) for block in residuals()), start=np.zeros(x.shape[1])) / len(rows)
    square = np.zeros(x.shape[1])
    for block in residuals():
        block -= mean
        square += np.einsum("nd,nd->d", block, block)
    return Moments(len(rows), mean, square)


def blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in parts that stay in a core's cache: the arithmetic is quicker than the memory."""
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK]


def posterior(
    gamma: Row, square: Row, n: int, scale_mean: float, scale_var: float
) -> tuple[Row, Row]:
    """Location and scale of a batch given those of its other features.

    `gamma* = (n t2 gamma + delta* gamma_bar) / (n t2 + delta*)` and
    `delta* = (b + 1/2 sum (z - gamma*)^2) / (a + n/2 - 1)`, in turns until neither changes by more
    than 1e-4 of itself; `t2` is the variance of gamma over features, `a` and `b` those of an
    inverse gamma with the given mean and variance.

    Args:
        gamma: (d,) the batch's mean, standardised.
        square: (d,) its sum of squares about that mean, standardised.
        n: Its rows.
        scale_mean: Mean over features of the batch's variance.
        scale_var: Variance over features of the batch's variance.
    """
    ratio = scale_mean**2 / max(scale_var, 1e-12 * scale_mean**2, np.finfo(float).tiny)
    a, b = 2 + ratio, scale_mean * (1 + ratio)
    centre, t2 = gamma.mean(), gamma.var()
    location = gamma
    scale = square / (n - 1) if n > 1 else np.full_like(gamma, scale_mean)
    for _ in range(_MOST_ROUNDS):
        moved = (n * t2 * gamma + scale * centre) / np.maximum(n * t2 + scale, _TINY)
        spread = (b + (square + n * (gamma - moved) ** 2) / 2) / (a + n / 2 - 1)
        change = max(_change(moved, location), _change(spread, scale))
        location, scale = moved, spread
        if change < 1e-4:
            break
    return location, scale


_MOST_ROUNDS = 1000
_TINY = np.finfo(float).tiny


def _change(new: Row, old: Row) -> float:
    return float(np.max(np.abs(new - old) / np.maximum(np.abs(old), _TINY)))


def _levels(profiles: Profiles, names: tuple[str, ...]) -> list[np.ndarray]:
    """The sorted words of each covariate; none for one of numbers."""
    found = []
    for name in names:
        values = column(profiles, name, "covariate")
        number = values.dtype.kind in "iuf"
        found.append(np.array([] if number else sorted(set(as_text(values))), dtype=np.str_))
    return found


def _design(
    profiles: Profiles, names: tuple[str, ...], levels: list[np.ndarray]
) -> Float[np.ndarray, "n p"]:
    """The covariates as numbers: one column for each level but the first."""
    columns: list[np.ndarray] = []
    for name, level in zip(names, levels, strict=True):
        if not len(level):
            columns.append(numbers(profiles, name))
            continue
        words = np.array(as_text(column(profiles, name, "covariate")), dtype=object)
        foreign = sorted(set(words) - set(level.tolist()))
        if foreign:
            raise InputError(
                f"combat: {name} has {len(foreign)} value(s) that `fit` did not see "
                f"({some(foreign, 4)})",
                fix="leave these rows out, or fit with rows that have them",
            )
        columns += [(words == word).astype(float) for word in level[1:]]
    return np.stack(columns, axis=1) if columns else np.zeros((len(profiles), 0))
