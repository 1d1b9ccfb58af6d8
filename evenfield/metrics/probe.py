"""Linear probes: what a linear model reads from the profiles, the biology or the batch.

`linear-probe` learns labels on all domains but one and is judged on that one. `domain-probe-...`
learns to tell the domains apart, on the negative controls and on the treated wells: a table that
was normalised to its controls can hide the batch in these and still carry it in the others.

The model is ridge regression on one-hot codes after scaling each feature by its spread in the
training rows (a least-squares classifier), in closed form: no iterations, no random start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.kernels.pairs import codes_of
from evenfield.metrics.kernels.view import View
from evenfield.seeds import numpy_generator

Fold = tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]


def ridge_labels(
    train: Float[np.ndarray, "m d"],
    label: Int[np.ndarray, " m"],
    test: Float[np.ndarray, "t d"],
    penalty: float,
) -> Int[np.ndarray, " t"]:
    """Labels of `test` by ridge regression on one-hot codes: (X'X / m + penalty I)^-1 X'Y / m.

    Features are scaled to mean 0 and variance 1 on `train`; those without spread are left out.
    The dual form is solved where there are fewer rows than features.

    >>> x = np.array([[0.0], [0.1], [1.0], [1.1]])
    >>> ridge_labels(x, np.array([0, 0, 1, 1]), np.array([[0.2], [0.9]]), 0.1).tolist()
    [0, 1]
    """
    mean, spread = train.mean(0), train.std(0)
    keep = spread > 1e-12 * np.abs(mean).max(initial=1.0)
    x = (train[:, keep] - mean[keep]) / spread[keep]
    z = (test[:, keep] - mean[keep]) / spread[keep]
    names, code = np.unique(label, return_inverse=True)
    y = np.eye(len(names))[code]
    offset = y.mean(0)
    num, d = x.shape
    if num < d:
        kernel = x @ x.T / num
        kernel[np.diag_indices(num)] += penalty
        answer = z @ (x.T @ np.linalg.solve(kernel, (y - offset) / num))
    else:
        square = x.T @ x / num
        square[np.diag_indices(d)] += penalty
        answer = z @ np.linalg.solve(square, x.T @ (y - offset) / num)
    return names[np.argmax(answer + offset, axis=1)]


def grouped_folds(
    group: Int[np.ndarray, " n"], num_folds: int, rng: np.random.Generator
) -> Iterator[Fold]:
    """Train and test masks; the rows of a group are never on both sides."""
    names = rng.permutation(np.unique(group))
    fold_of = np.zeros(group.max() + 1, dtype=np.int64)
    fold_of[names] = np.arange(len(names)) % num_folds
    for number in range(min(num_folds, len(names))):
        yield fold_of[group] != number, fold_of[group] == number


class Probe(ProfileMetric):
    """What the probes share: predictions of held-out rows, judged together."""

    chance = "share of the largest name among the scored rows"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of a linear probe.

        Attributes:
            penalty: Of the ridge, in units of the variance of a feature.
            num_folds: Of the cross-validation of a domain probe.
            seed: Of its folds.
        """

        penalty: float = 0.1
        num_folds: int = 5
        seed: int = 0

    def judged(
        self,
        view: View,
        target: Int[np.ndarray, " n"],
        folds: Iterator[Fold],
        reason: str,
    ) -> Score:
        """The share of held-out rows whose target is predicted."""
        features = np.asarray(view.profiles.features, dtype=np.float64)
        right = np.zeros(len(view))
        scored = np.zeros(len(view), dtype=bool)
        for train, test in folds:
            known = test & np.isin(target, target[train])
            if known.any() and len(np.unique(target[train])) > 1:
                guess = ridge_labels(
                    features[train], target[train], features[known], self.config.penalty
                )
                right[known] = guess == target[known]
                scored |= known
        num = int(scored.sum())
        return self.score(
            view,
            value=float(right[scored].mean()) if num else None,
            num=num,
            chance=float(np.bincount(target[scored]).max() / num) if num else None,
            left_out={reason: int((~scored).sum())},
            items=view.profiles.metadata[scored].assign(score=right[scored]),
        )


@PROFILE_METRICS.register("linear-probe")
class LinearProbe(Probe):
    """Share of profiles whose label a linear model of the OTHER domains gives."""

    aspect = "biology"
    needs = ("label", "domain")

    def compute(self, view: View) -> Score:
        """One domain is left out at a time; labels that the others lack are left out."""
        domain = view.codes("domain")
        folds = ((domain != code, domain == code) for code in np.unique(domain))
        return self.judged(view, view.codes("label"), folds, "label in one domain only")


class DomainProbe(Probe):
    """What the two domain probes share."""

    direction = "lower"
    aspect = "batch"
    needs: ClassVar[tuple[str, ...]] = ("domain",)

    def folds(self, view: View) -> Iterator[Fold]:
        """Cross-validation; replicates of a treatment stay together, so that it is not learned."""
        role = self.columns.treatment
        group = np.arange(len(view))
        if self.rows == "treated" and role is not None and role in view.profiles.metadata:
            named = codes_of(view.profiles.metadata[role])[0]
            group = np.where(named >= 0, named, named.max() + 1 + group)
        rng = numpy_generator(self.config.seed, self.name)
        return grouped_folds(group, self.config.num_folds, rng)

    def compute(self, view: View) -> Score:
        """How well a linear model tells the domain of a well that it was not fitted on."""
        if len(view) < 2 or len(view.names("domain")) < 2:
            return self.score(view, value=None, num=0, chance=None, notes=("one domain only",))
        return self.judged(
            view, view.codes("domain"), self.folds(view), "domain not in the training rows"
        )


@PROFILE_METRICS.register("domain-probe-controls")
class ControlsProbe(DomainProbe):
    """Share of negative controls whose domain a linear model recognises."""

    rows = "controls"
    needs = ("domain", "control")


@PROFILE_METRICS.register("domain-probe-treated")
class TreatedProbe(DomainProbe):
    """Share of treated wells whose domain a linear model recognises, treatments held out."""
