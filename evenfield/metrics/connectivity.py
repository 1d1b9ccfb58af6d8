"""Graph connectivity: do the profiles of one label hang together in the graph of neighbours?

Luecken et al., "Benchmarking atlas-level data integration in single-cell genomics", Nat. Methods
2022, https://doi.org/10.1038/s41592-021-01336-8: for each label the share of its profiles in the
largest (strongly) connected part of the graph of its own profiles; the mean over labels.

Where this file departs from scib-metrics 0.5.10, and why:
    neighbours   Exact, by default by cosine; k does not count the profile itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.kernels.chance import shuffled
from evenfield.metrics.kernels.nearest import Distance, Neighbours
from evenfield.metrics.kernels.view import View


def largest_shares(
    found: Neighbours, code: Int[np.ndarray, " n"], num_codes: int
) -> Float[np.ndarray, " c"]:
    """For each label the share of its rows in the largest strongly connected part of its graph."""
    num, k = found.index.shape
    edges = np.ones(num * k)
    graph = csr_matrix((edges, found.index.ravel(), np.arange(0, num * k + 1, k)), (num, num))
    share = np.empty(num_codes)
    for label in range(num_codes):
        rows = np.flatnonzero(code == label)
        _, part = connected_components(graph[rows][:, rows], connection="strong")
        share[label] = np.bincount(part).max() / len(rows)
    return share


@PROFILE_METRICS.register("graph-connectivity")
class GraphConnectivity(ProfileMetric):
    """Mean over labels of the share of profiles in the largest connected part of their label."""

    aspect = "batch"
    needs = ("label", "domain")
    chance = "mean value after shuffling the names over the profiles, 5 times"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of graph connectivity.

        Attributes:
            k: Number of neighbours, the profile itself not counted.
            distance: `cosine` or `euclidean`.
        """

        k: int = 15
        distance: Distance = "cosine"

    def compute(self, view: View) -> Score:
        """1 = every label is one piece, however many batches it came from."""
        code, names = view.codes("label"), view.names("label")
        if len(view) < 3 or not names:
            return self.score(view, value=None, num=0, chance=None, notes=("no label",))
        found = view.neighbours(self.config.k, self.config.distance)
        share = largest_shares(found, code, len(names))
        return self.score(
            view,
            value=float(share.mean()),
            num=len(names),
            chance=shuffled(
                lambda order: float(largest_shares(found, order, len(names)).mean()),
                code,
                self.name,
            ),
            unit="label",
            notes=(f"{found.index.shape[1]} neighbours, {self.config.distance}",),
            items=pd.DataFrame({view.column("label").name: list(names), "score": share}),
        )
