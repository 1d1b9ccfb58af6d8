"""What the nearest profiles are: the same biology in another batch, or the same batch.

`knn` names each profile after its nearest ones in OTHER domains (the protocol of CHAMMI: Chen et
al., NeurIPS 2023, https://arxiv.org/abs/2310.19224, with a domain left out at a time).
`same-domain-neighbours` is the share of nearest profiles from the profile's own domain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.kernels.nearest import Distance
from evenfield.metrics.kernels.view import View


def vote(
    label: Int[np.ndarray, "n k"], distance: Float[np.ndarray, "n k"]
) -> Int[np.ndarray, " n"]:
    """The most frequent label of each row; of equally frequent ones that of the nearest.

    Args:
        label: (n, k) labels of the neighbours, nearest first.
        distance: (n, k) inf where there is no neighbour.

    >>> vote(np.array([[2, 1, 1], [2, 1, 0]]), np.array([[1.0, 2, 3], [1, 2, 3]])).tolist()
    [1, 2]
    """
    valid = np.isfinite(distance)
    count = np.stack([((label == own[:, None]) & valid).sum(1) for own in label.T], axis=1) * valid
    # Nearest comes first, and argmax takes the first of equal counts.
    return np.take_along_axis(label, count.argmax(1)[:, None], axis=1)[:, 0]


def expected_same(code: Int[np.ndarray, " n"]) -> float:
    """Share of other rows that have a row's own code, on average over rows.

    >>> expected_same(np.array([0, 0, 1, 1]))
    0.3333333333333333
    """
    count = np.bincount(code)
    return float((count * (count - 1)).sum() / (len(code) * (len(code) - 1)))


@PROFILE_METRICS.register("knn")
class LeaveDomainOutNeighbours(ProfileMetric):
    """Share of profiles that their nearest ones in other domains give the right label."""

    aspect = "biology"
    needs = ("label", "domain")
    chance = "share of the largest label among the scored rows"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of the nearest-neighbour classifier.

        Attributes:
            k: How many neighbours vote.
            distance: `cosine` or `euclidean`.
        """

        k: int = 1
        distance: Distance = "cosine"

    def compute(self, view: View) -> Score:
        """Rows whose label occurs in no other domain are left out: they cannot be right."""
        label, domain = view.codes("label"), view.codes("domain")
        scored = elsewhere(label, domain)
        num = int(scored.sum())
        left_out = {"label in one domain only": int((~scored).sum())}
        if not num:
            return self.score(view, value=None, num=0, chance=None, left_out=left_out)
        found = view.neighbours(self.config.k, self.config.distance, foreign="domain")
        right = vote(label[found.index], found.distance) == label
        return self.score(
            view,
            value=float(right[scored].mean()),
            num=num,
            chance=float(np.bincount(label[scored]).max() / num),
            left_out=left_out,
            also={"of all rows": (float(right[scored].sum() / len(view)), len(view))},
            notes=(f"{found.index.shape[1]} neighbours, {self.config.distance}",),
            items=view.profiles.metadata[scored].assign(score=right[scored].astype(np.float64)),
        )


@PROFILE_METRICS.register("same-domain-neighbours")
class SameDomainNeighbours(ProfileMetric):
    """Share of nearest profiles that come from the profile's own domain."""

    direction = "lower"
    aspect = "batch"
    needs = ("domain",)
    chance = "share of other rows that are of the row's own domain"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of the share of neighbours.

        Attributes:
            k: How many neighbours count.
            distance: `cosine` or `euclidean`.
        """

        k: int = 1
        distance: Distance = "cosine"

    def compute(self, view: View) -> Score:
        """Treated wells; controls that look alike on all plates do not show what these do."""
        domain = view.codes("domain")
        if len(view) < 3 or len(view.names("domain")) < 2:
            return self.score(view, value=None, num=0, chance=None, notes=("one domain only",))
        found = view.neighbours(self.config.k, self.config.distance)
        same = (domain[found.index] == domain[:, None]).mean(1)
        return self.score(
            view,
            value=float(same.mean()),
            num=len(view),
            chance=expected_same(domain),
            notes=(f"{found.index.shape[1]} neighbours, {self.config.distance}",),
            items=view.profiles.metadata.assign(score=same),
        )


def elsewhere(label: Int[np.ndarray, " n"], domain: Int[np.ndarray, " n"]) -> np.ndarray:
    """(n,) whether a row's label occurs in another domain, too.

    >>> elsewhere(np.array([0, 0, 1]), np.array([0, 1, 1])).tolist()
    [True, True, False]
    """
    pairs = np.unique(np.stack([label, domain], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=label.max(initial=0) + 1)[label] > 1
