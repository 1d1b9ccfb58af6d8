"""Intervals over domains: what a repetition on other batches could have shown.

The unit that is resampled is the domain, never the image: images of one batch share its effect, so
an interval over images would be far too narrow (percentile bootstrap: Efron 1979; one draw of the
units with replacement = one cluster draw).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from evenfield.errors import InputError
from evenfield.seeds import numpy_generator

if TYPE_CHECKING:
    from evenfield.metrics.base import Score

LEAST_UNITS = 3
"""Below this number of units no interval is given."""
NUM_DRAWS = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over units and its percentile bootstrap interval.

    Attributes:
        mean: Mean over units of the mean within units (of `score_interval`: over all items).
        low: Lower bound, None with fewer than 3 units.
        high: Upper bound, None with fewer than 3 units.
        num_units: How many units there are.
        num_seeds: The least number of seeds behind a unit (1 where no seeds were given).
        level: Coverage aimed at.
    """

    mean: float
    low: float | None
    high: float | None
    num_units: int
    num_seeds: int = 1
    level: float = 0.95


def interval(
    values: Float[np.ndarray, " n"],
    units: Shaped[np.ndarray, " n"],
    seeds: Shaped[np.ndarray, " n"] | None = None,
    *,
    level: float = 0.95,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Interval:
    """The mean over units with an interval from resampling units.

    Values of one unit are averaged first within each seed, then over seeds, so a unit counts once
    however often it was measured. The interval does not count the spread between seeds apart.

    Args:
        values: Measured numbers.
        units: The domain of each value (names or codes).
        seeds: The training seed of each value.
        level: Coverage aimed at.
        num_draws: Bootstrap draws.
        seed: Seed of the draws; equal input gives equal bounds.

    Raises:
        InputError: No values, a NaN, or arrays of different lengths.

    >>> found = interval(np.array([0.8, 0.9]), np.array(["a", "b"]))
    >>> round(found.mean, 3), found.low, found.num_units
    (0.85, None, 2)
    """
    _, means, num_seeds = unit_means(values, units, seeds)
    low, high = _bounds(means, level=level, num_draws=num_draws, seed=seed)
    return Interval(
        mean=float(means.mean()),
        low=low,
        high=high,
        num_units=len(means),
        num_seeds=num_seeds,
        level=level,
    )


def paired_interval(
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " n"],
    units: Shaped[np.ndarray, " n"],
    seeds: Shaped[np.ndarray, " n"] | None = None,
    *,
    level: float = 0.95,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Interval:
    """The mean of `a - b` over units: two choices compared on the same domains.

    Raises:
        InputError: No values, a NaN, or arrays of different lengths.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise InputError(
            f"a pair needs two values: {a.shape} against {b.shape}",
            fix="give both choices' values for the same units in the same order",
        )
    return interval(a - b, units, seeds, level=level, num_draws=num_draws, seed=seed)


def score_interval(
    score: Score,
    by: str,
    *,
    level: float = 0.95,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Interval:
    """The mean over ALL items of a score, with an interval from resampling whole units.

    Unlike `interval`, a unit weighs as much as it has items: the mean is the number that the score
    prints.

    Args:
        score: Of a profile metric that has items.
        by: The column of `score.items` that names the unit: a treatment, a compound, a batch.
        level: Coverage aimed at.
        num_draws: Bootstrap draws.
        seed: Of the draws.

    Raises:
        InputError: There are no items, no such column, or the value is no mean over its items.
    """
    if not len(score.items) or by not in score.items:
        columns = ", ".join(map(str, score.items.columns)) or "nothing"
        raise InputError(
            f"{score.metric} has {len(score.items)} items with the columns {columns}, "
            f"but an interval over {by} was asked for",
            fix="choose one of these columns",
        )
    values = score.items["score"].to_numpy(np.float64)
    if score.value is None or abs(values.mean() - score.value) > 1e-6:
        raise InputError(
            f"{score.metric} is {score.value}, not the mean of its items ({values.mean():.4g})",
            fix="repeat the metric on other batches; an interval of another number would mislead",
        )
    _, code = np.unique(score.items[by].astype(str), return_inverse=True)
    total, count = np.bincount(code, values), np.bincount(code)
    low = high = None
    if len(count) >= LEAST_UNITS:
        rng = numpy_generator(seed, "pooled-bootstrap", len(count))
        drawn = rng.integers(len(count), size=(num_draws, len(count)))
        tail = 100 * (1 - level) / 2
        low, high = np.percentile(total[drawn].sum(1) / count[drawn].sum(1), [tail, 100 - tail])
        low, high = float(low), float(high)
    return Interval(
        mean=float(values.mean()), low=low, high=high, num_units=len(count), level=level
    )


def unit_means(
    values: Float[np.ndarray, " n"],
    units: Shaped[np.ndarray, " n"],
    seeds: Shaped[np.ndarray, " n"] | None = None,
) -> tuple[list[str], Float[np.ndarray, " u"], int]:
    """Unit names (sorted), the mean over seeds of each, and the least number of seeds of a unit."""
    values = np.asarray(values, dtype=np.float64)
    names = np.asarray(units).astype(str)
    ticks = np.zeros(len(values), dtype=np.int64) if seeds is None else np.asarray(seeds)
    if values.ndim != 1 or values.shape != names.shape or values.shape != ticks.shape:
        raise InputError(
            f"values {values.shape}, units {names.shape} and seeds {ticks.shape} do not match",
            fix="give one unit (and one seed) for each value",
        )
    if len(values) == 0 or not np.isfinite(values).all():
        raise InputError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} values are not finite",
            fix="give at least one value and leave out what could not be measured",
        )
    found = sorted(set(names.tolist()))
    means, num_seeds = [], len(values)
    for name in found:
        mine = names == name
        of_seed = [values[mine & (ticks == tick)].mean() for tick in np.unique(ticks[mine])]
        means.append(np.mean(of_seed))
        num_seeds = min(num_seeds, len(of_seed))
    return found, np.array(means), num_seeds


def _bounds(
    means: Float[np.ndarray, " u"], *, level: float, num_draws: int, seed: int
) -> tuple[float | None, float | None]:
    if len(means) < LEAST_UNITS:
        return None, None
    rng = numpy_generator(seed, "bootstrap", len(means))
    draws = np.sort(means)[rng.integers(len(means), size=(num_draws, len(means)))].mean(1)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)
