"""kBET: has the neighbourhood of a profile the batch shares of the table?

Buettner et al., "A test metric for assessing single-cell RNA-seq batch correction", Nat. Methods
2019, https://doi.org/10.1038/s41592-018-0254-1: a chi-square test for each profile; the score is
the share of profiles where it does not reject.

Where this file departs from scib-metrics 0.5.10, and why:
    neighbours   Exact, and a profile is not its own neighbour: there it counts for its batch, and
                 profiles of small batches are rejected too often even where names are random.
    within       `all` compares with the shares of the whole table, `label` with those of the
                 profiles of the same label, so that a label that lives in one batch does no harm;
                 neighbours are then taken within the label as they are, not on a diffusion map.

Unequal batch sizes, k and distance move the value: compare only at equal settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.special import chdtrc

from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.kernels.chance import neighbour_counts, shuffled
from evenfield.metrics.kernels.nearest import Distance, Neighbours, nearest
from evenfield.metrics.kernels.view import View

LEAST_EXPECTED = 5.0
"""Below this expected count the chi-square distribution is a poor approximation."""


def kbet_p_values(
    counts: Float[np.ndarray, "n b"], share: Float[np.ndarray, " b"]
) -> Float[np.ndarray, " n"]:
    """Pearson's chi-square test of neighbourhood counts against the shares of the table.

        statistic = sum over batches of (observed - k share)^2 / (k share),   b - 1 degrees

    >>> kbet_p_values(np.array([[2.0, 2.0]]), np.array([0.5, 0.5])).tolist()
    [1.0]
    """
    expected = counts.sum(1, keepdims=True) * share
    statistic = ((counts - expected) ** 2 / expected).sum(1)
    return chdtrc(len(share) - 1, statistic)


@PROFILE_METRICS.register("kbet")
class KBET(ProfileMetric):
    """Share of profiles whose neighbourhood has the batch shares of the table (not rejected)."""

    aspect = "batch"
    needs = ("domain",)

    chance = "mean value after shuffling the names over the profiles, 5 times"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of kBET.

        Attributes:
            k: Number of neighbours, the profile itself not counted; at most so many
                where `within` is `label`.
            distance: `cosine` or `euclidean`.
            alpha: Level of the test.
            within: Neighbours and shares of the whole table (`all`), or of the profiles of the same
                label (`label`, the mean over labels).
        """

        k: int = 50
        distance: Distance = "cosine"
        alpha: float = 0.05
        within: Literal["all", "label"] = "all"

    def compute(self, view: View) -> Score:
        """Acceptance rate: 1 = mixed everywhere, 0 = nowhere."""
        domain = view.codes("domain")
        if len(view) < 3 or len(view.names("domain")) < 2:
            return self.score(view, value=None, num=0, chance=None, notes=("one domain only",))
        if self.config.within == "label":
            return self._within_labels(view, domain)
        found = view.neighbours(self.config.k, self.config.distance)
        accepted, least = self._accepted(domain, found)
        return self.score(
            view,
            value=float(accepted.mean()),
            num=len(view),
            chance=shuffled(partial(self._rate, found=found), domain, self.name),
            notes=(f"{found.index.shape[1]} neighbours, {self.config.distance}", *_poor(least)),
            items=view.profiles.metadata.assign(score=accepted.astype(np.float64)),
        )

    def _accepted(self, code: Int[np.ndarray, " n"], found: Neighbours) -> tuple[np.ndarray, float]:
        share = np.bincount(code) / len(code)
        counts = neighbour_counts(code[found.index], len(share))
        p = kbet_p_values(counts[:, share > 0], share[share > 0])
        return p >= self.config.alpha, float(share[share > 0].min() * found.index.shape[1])

    def _rate(self, code: Int[np.ndarray, " n"], found: Neighbours) -> float:
        return float(self._accepted(code, found)[0].mean())

    def _within_labels(self, view: View, domain: Int[np.ndarray, " n"]) -> Score:
        label = view.codes("label")
        value, chance = {}, {}
        least = np.inf
        for code, name in enumerate(view.names("label")):
            rows = np.flatnonzero(label == code)
            own = np.unique(domain[rows], return_inverse=True)[1]
            if len(rows) < 10 or own.max() == 0:
                continue
            # A quarter of the mean batch, as kBET's authors advise; never beyond the label.
            k = int(np.clip(len(rows) / (own.max() + 1) / 4, 10, self.config.k))
            found = nearest(
                view.profiles.features[rows],
                min(k, len(rows) - 1),
                distance=self.config.distance,
            )
            accepted, expected = self._accepted(own, found)
            least = min(least, expected)
            value[name] = float(accepted.mean())
            chance[name] = shuffled(partial(self._rate, found=found), own, self.name)
        num = len(value)
        return self.score(
            view,
            value=float(np.mean(list(value.values()))) if num else None,
            num=num,
            chance=float(np.mean(list(chance.values()))) if num else None,
            unit="label",
            left_out={
                "label with one domain or fewer than 10 rows": len(view.names("label")) - num
            },
            notes=_poor(least),
            items=pd.DataFrame(
                {view.column("label").name: list(value), "score": list(value.values())}
            ),
        )


def _poor(least: float) -> tuple[str, ...]:
    if least >= LEAST_EXPECTED:
        return ()
    return (
        f"a batch is expected {least:.2g} times in a neighbourhood: below 5 the test is inexact",
    )
