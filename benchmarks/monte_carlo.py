"""Why controls help, and when they do not: errors of three estimates of a plate's offset.

    python benchmarks/monte_carlo.py [--trials 20000] [--seed 0]

Model of one channel: an image of class y on plate d reads a = mu + b_d + c_y + e, Var(e) = s^2;
controls have no class term; the target is mu + b_d. With Delta the mean and v the variance of c_y
in the context, and N = n_p + n_c:

    perturbed only   |Delta|^2 + (v + s^2) / n_p
    controls only    s^2 / n_c
    union            (n_p / N)^2 |Delta|^2 + s^2 / N + v n_p / N^2

so the union beats the controls iff n_p |Delta|^2 + v < s^2 (1 + n_p / n_c), and of all weights of
the perturbed mean the best is w* = (s^2 / n_c) / (s^2 / n_c + |Delta|^2 + (v + s^2) / n_p).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from evenfield.seeds import numpy_generator

NUM_CLASSES = 8
CLASS_SPREAD = 0.6
MIXES = {"balanced": None, "Dirichlet 1": 1.0, "Dirichlet 0.01": 0.01}
SETTINGS = [
    (64, 128, ("balanced", "Dirichlet 1", "Dirichlet 0.01")),
    (8, 128, ("balanced", "Dirichlet 0.01")),
    (64, 8, ("balanced", "Dirichlet 0.01")),
    (64, 64, ("balanced", "Dirichlet 0.01")),
]


@dataclass(frozen=True, slots=True)
class Estimates:
    """Errors of the three estimates, one a trial, and the class mix behind them."""

    perturbed: np.ndarray
    controls: np.ndarray
    union: np.ndarray
    delta: np.ndarray
    class_variance: np.ndarray


def draw_mix(
    rng: np.random.Generator, trials: int, alpha: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Class offsets (trials, k), centred, and class shares (trials, k); alpha None is balanced."""
    offsets = rng.normal(0, CLASS_SPREAD, (trials, NUM_CLASSES))
    offsets -= offsets.mean(1, keepdims=True)
    if alpha is None:
        return offsets, np.full((trials, NUM_CLASSES), 1 / NUM_CLASSES)
    return offsets, rng.dirichlet([alpha] * NUM_CLASSES, trials)


def simulate(
    rng: np.random.Generator, offsets: np.ndarray, shares: np.ndarray, n_p: int, n_c: int, s: float
) -> Estimates:
    """Draw every image's class and noise independently and estimate the plate's offset (0)."""
    trials = len(offsets)
    edges = shares.cumsum(1)
    codes = (rng.random((trials, n_p, 1)) > edges[:, None, :-1]).sum(2)
    image = np.take_along_axis(offsets, codes, 1) + rng.normal(0, s, (trials, n_p))
    control = rng.normal(0, s, (trials, n_c))
    delta = (shares * offsets).sum(1)
    return Estimates(
        perturbed=image.mean(1),
        controls=control.mean(1),
        union=(image.sum(1) + control.sum(1)) / (n_p + n_c),
        delta=delta,
        class_variance=(shares * (offsets - delta[:, None]) ** 2).sum(1),
    )


def formulas(
    delta: np.ndarray, v: np.ndarray, n_p: int, n_c: int, s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expected squared errors: perturbed only, controls only, union."""
    n = n_p + n_c
    perturbed = delta**2 + (v + s**2) / n_p
    controls = np.full_like(delta, s**2 / n_c)
    return perturbed, controls, (n_p / n) ** 2 * delta**2 + s**2 / n + v * n_p / n**2


def union_beats_controls(
    delta: np.ndarray, v: np.ndarray, n_p: int, n_c: int, s: float
) -> np.ndarray:
    """The inequality above."""
    return n_p * delta**2 + v < s**2 * (1 + n_p / n_c)


def best_weight(delta: np.ndarray, v: np.ndarray, n_p: int, n_c: int, s: float) -> np.ndarray:
    """w*, the best weight of the perturbed mean against the controls' mean."""
    noise = s**2 / n_c
    return noise / (noise + delta**2 + (v + s**2) / n_p)


def row(n_p: int, n_c: int, mix: str, *, trials: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared errors (3,) as simulated and as the formulas say."""
    rng = numpy_generator(seed, "monte-carlo", n_p, n_c, mix)
    estimates = simulate(rng, *draw_mix(rng, trials, MIXES[mix]), n_p, n_c, 1.0)
    kinds = (estimates.perturbed, estimates.controls, estimates.union)
    simulated = np.array([np.mean(error**2) for error in kinds])
    expected = formulas(estimates.delta, estimates.class_variance, n_p, n_c, 1.0)
    return simulated, np.array([kind.mean() for kind in expected])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Mean squared errors of a plate's offset.")
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("| n_p, n_c | class mix | perturbed only | controls only | union | (n_p/N)^2 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for n_p, n_c, mixes in SETTINGS:
        for mix in mixes:
            simulated, expected = row(n_p, n_c, mix, trials=given.trials, seed=given.seed)
            cells = [f"{a:.4f} ({b:.4f})" for a, b in zip(simulated, expected, strict=True)]
            shrink = (n_p / (n_p + n_c)) ** 2
            print(f"| {n_p}, {n_c} | {mix} | {' | '.join(cells)} | {shrink:.4f} |")
    print("\nIn brackets: the formulas, for the class mixes that were drawn.")


if __name__ == "__main__":
    main()
