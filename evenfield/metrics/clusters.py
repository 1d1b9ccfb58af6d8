"""Do clusters that know no label agree with the labels? (NMI and ARI)

k-means with as many clusters as labels, the best of some starts (scikit-learn); or Leiden
communities of the graph of neighbours. Normalised mutual information with the arithmetic mean,
adjusted Rand index.

Where this file departs from scib-metrics 0.5.10, and why:
    resolution   One, stated. There ten resolutions are tried and the best by NMI is kept, which
                 looks at the labels.
    Leiden       Needs `igraph`, which is GPL: never a dependency nor an extra of Evenfield. If it
                 is installed it is used. `agreement` takes communities found by any other program.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from evenfield.errors import InputError
from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.kernels.chance import shuffled
from evenfield.metrics.kernels.nearest import Distance, Neighbours, placed
from evenfield.metrics.kernels.view import View
from evenfield.seeds import derive, numpy_generator


def agreement(label: Int[np.ndarray, " n"], cluster: Int[np.ndarray, " n"]) -> tuple[float, float]:
    """Normalised mutual information and adjusted Rand index of two partitions.

    >>> agreement(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]))
    (1.0, 1.0)
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return (
        float(normalized_mutual_info_score(label, cluster)),
        float(adjusted_rand_score(label, cluster)),
    )


def leiden_communities(found: Neighbours, *, resolution: float, seed: int) -> Int[np.ndarray, " n"]:
    """Leiden communities (modularity) of the undirected graph of neighbours, edges of weight 1.

    Raises:
        InputError: igraph is not installed.
    """
    try:
        igraph = import_module("igraph")
    except ImportError as error:
        raise InputError(
            "Leiden communities need the package igraph, which is not installed",
            fix="use kmeans-nmi and kmeans-ari, or install igraph yourself (it is GPL)",
        ) from error
    num, k = found.index.shape
    edges = np.stack([np.repeat(np.arange(num), k), found.index.ravel()], axis=1)
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    igraph.set_random_number_generator(_Draws(numpy_generator(seed, "leiden")))
    graph = igraph.Graph(n=num, edges=edges.tolist())
    communities = graph.community_leiden(objective_function="modularity", resolution=resolution)
    return np.asarray(communities.membership, dtype=np.int64)


class _Draws:
    """A generator of ours in the form that igraph asks for."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def random(self) -> float:
        return float(self._rng.random())

    def randint(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high, endpoint=True))

    def gauss(self, mean: float, spread: float) -> float:
        return float(self._rng.normal(mean, spread))

    def getrandbits(self, num_bits: int) -> int:
        return int.from_bytes(self._rng.bytes((num_bits + 7) // 8), "big") >> (-num_bits % 8)


class Agreement(ProfileMetric):
    """What the four share."""

    aspect = "biology"
    needs = ("label",)
    chance = "mean value after shuffling the labels over the profiles, 5 times"
    which: ClassVar[int]  # 0 = NMI, 1 = ARI

    def clusters(self, view: View) -> Int[np.ndarray, " n"]:
        """(n,) cluster codes."""
        raise NotImplementedError

    def compute(self, view: View) -> Score:
        """Agreement of clusters and labels."""
        label, names = view.codes("label"), view.names("label")
        if not 2 <= len(names) < len(view):
            notes = (f"{len(names)} labels on {len(view)} rows: at least 2, and fewer than rows",)
            return self.score(view, value=None, num=0, chance=None, notes=notes)
        cluster = self.clusters(view)
        return self.score(
            view,
            value=agreement(label, cluster)[self.which],
            num=len(view),
            chance=shuffled(lambda order: agreement(order, cluster)[self.which], label, self.name),
            notes=(f"{cluster.max() + 1} clusters, {len(names)} labels", self.config.distance),
        )


class KMeansAgreement(Agreement):
    """What the two agreements with k-means share."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of k-means.

        Attributes:
            distance: `cosine` (of rows scaled to length 1) or `euclidean`.
            num_starts: The best of so many starts is kept.
            seed: Of the starts.
        """

        distance: Distance = "cosine"
        num_starts: int = 3
        seed: int = 0

    def clusters(self, view: View) -> Int[np.ndarray, " n"]:
        """As many clusters as labels."""
        num, settings = len(view.names("label")), self.config

        def fit() -> Any:
            from sklearn.cluster import KMeans

            start = derive(settings.seed, "kmeans") % 2**32
            model = KMeans(num, n_init=settings.num_starts, random_state=start)
            return model.fit_predict(placed(view.profiles.features, settings.distance))

        return view.remember(("kmeans", num, settings), fit)


class LeidenAgreement(Agreement):
    """What the two agreements with Leiden communities share."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of Leiden communities.

        Attributes:
            k: Number of neighbours in the graph.
            distance: `cosine` or `euclidean`.
            resolution: Larger = more communities.
            seed: Of the optimisation.
        """

        k: int = 15
        distance: Distance = "cosine"
        resolution: float = 1.0
        seed: int = 0

    def clusters(self, view: View) -> Int[np.ndarray, " n"]:
        """Communities of the graph of neighbours."""
        settings = self.config
        return view.remember(
            ("leiden", settings),
            lambda: leiden_communities(
                view.neighbours(settings.k, settings.distance),
                resolution=settings.resolution,
                seed=settings.seed,
            ),
        )


@PROFILE_METRICS.register("kmeans-nmi")
class KMeansNMI(KMeansAgreement):
    """Normalised mutual information of labels and k-means clusters."""

    which = 0


@PROFILE_METRICS.register("kmeans-ari")
class KMeansARI(KMeansAgreement):
    """Adjusted Rand index of labels and k-means clusters."""

    bounds = (-0.5, 1.0)
    which = 1


@PROFILE_METRICS.register("leiden-nmi")
class LeidenNMI(LeidenAgreement):
    """Normalised mutual information of labels and Leiden communities (needs igraph)."""

    which = 0


@PROFILE_METRICS.register("leiden-ari")
class LeidenARI(LeidenAgreement):
    """Adjusted Rand index of labels and Leiden communities (needs igraph)."""

    bounds = (-0.5, 1.0)
    which = 1
