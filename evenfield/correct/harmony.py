"""Harmony: rows are softly clustered so that each cluster holds all batches, then moved together.

Korsunsky et al., "Fast, sensitive and accurate integration of single-cell data with Harmony", Nat
Methods 16:1289 (2019), with the mapping of new batches of Kang et al., "Efficient and precise
single-cell reference mapping with Symphony", Nat Commun 12:5890 (2021). Written from the papers.

Where this file departs from the papers, and why:
    map            What is stored is a map of single rows: assignment and correction of a row are
                   iterated to their joint fixed point with the final centroids, penalties and
                   coefficients. `fit_transform` is that map, too, so that a row of a batch that was
                   seen gets the same answer alone, later, and in any company.
    new batches    Symphony assigns a new batch by its uncorrected rows, once. Here assignment and
                   correction alternate as in Harmony, the reference's terms fixed.
    blocks         Are every 20th row in an order that depends on the rows' values only, instead of
                   random ones: the order of rows and the names of batches do not matter.
    rounds         The number of clustering rounds is fixed; the outer loop stops when corrections
                   change by less than `tolerance` of their size.
    components     Harmony expects principal components; they are taken here, so that new rows
                   are projected as the old ones were.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from evenfield.correct.base import CORRECTORS, Corrector, State, Unseen, check_range, domain_rows
from evenfield.correct.base.linear import principal, rank_of, scatter
from evenfield.seeds import derive
from evenfield.types import Profiles

_BLOCKS = 20
_FIXED_POINT = 30
_PRECISION = 1e-6
_MOST_FOR_KMEANS = 30_000


@CORRECTORS.register("harmony")
class Harmony(Corrector):
    """Soft k-means with a penalty for clusters of one batch, and a ridge correction per cluster.

    A batch never seen: from all its rows in the table that is transformed (give the whole batch):
    they are assigned to the fitted centroids and corrected by a ridge regression per cluster, in
    which the reference's rows count as fitted.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Corrector.Config):
        """The settings of Harmony.

        Attributes:
            domain: The column of the batch.
            num_components: Principal components that are taken first; none = the features are such.
            output: The corrected `components`, or the `features`, each moved by what its
                components were moved.
            num_clusters: Clusters; none = one for 30 rows, at most 100.
            theta: Weight of the diversity penalty; 0 = plain soft k-means.
            sigma: Width of the soft assignment.
            ridge: Penalty of the batch terms in each cluster's regression, lambda of the paper.
            iterations: Most turns of clustering and correction.
            rounds: Clustering rounds in a turn.
            tolerance: Stop when corrections change by less than this share of their size.
            seed: Of the first centroids.
        """

        domain: str = "Metadata_Batch"
        num_components: int | None = 50
        output: Literal["components", "features"] = "components"
        num_clusters: int | None = None
        theta: float = 2.0
        sigma: float = 0.1
        ridge: float = 1.0
        iterations: int = 10
        rounds: int = 4
        tolerance: float = 0.01
        seed: int = 0

        def __post_init__(self) -> None:
            check_range("theta", self.theta, 0)
            check_range("sigma", self.sigma, 1e-3)
            check_range("ridge", self.ridge, 1e-6)
            check_range("iterations", self.iterations, 1)
            check_range("rounds", self.rounds, 1)
            for value in (self.num_components, self.num_clusters):
                check_range("num_components and num_clusters", 1 if value is None else value, 1)

    @property
    def unseen(self) -> Unseen:
        """All rows of the new batch."""
        return "rows"

    def learn(self, profiles: Profiles) -> State:
        """Components, centroids (k, e), penalty (b, k), coefficients (b, k, e), reference sums."""
        config, x = self.config, profiles.features
        names = np.empty(len(x), dtype=object)
        for name, rows in domain_rows(profiles, config.domain).items():
            names[rows] = name
        # An order of rows and batches that depends on values alone.
        order = np.lexsort(x[:, : min(4, x.shape[1])].T)
        code, domains = pd.factorize(names[order])
        by_batch = np.argsort(code, kind="stable")
        order, ends = order[by_batch], np.cumsum(np.bincount(code))
        x = x[order]
        state = self._components(x)
        z = self._projected(x, state)
        num = config.num_clusters or min(max(round(len(z) / 30), 1), 100)
        centroid = self._first_centroids(z, min(num, len(np.unique(z, axis=0))))
        fitted = integrate(z, ends, centroid, config)
        return {**state, **fitted, "domains": domains.astype(np.str_)}

    def map(self, profiles: Profiles) -> Profiles:
        """`z - sum_k r_k coefficient_k`, with r at its fixed point."""
        state, x = self.state, profiles.features
        domains = domain_rows(profiles, self.config.domain)
        place = {str(name): index for index, name in enumerate(state["domains"])}
        moved = np.empty((len(x), state["centroid"].shape[1]), dtype=np.float32)
        centroid = state["centroid"]
        for name, rows in domains.items():
            z = self._projected(x[rows], state)
            if name in place:
                bias, coefficient = state["bias"][place[name]], state["coefficient"][place[name]]
                moved[rows] = fixed_point(z, centroid, bias, coefficient, self.config.sigma)
            else:
                moved[rows] = self._new(z)
        if self.config.output == "components":
            names = tuple(f"Harmony_{i}" for i in range(moved.shape[1]))
            return profiles.with_features(moved.astype(x.dtype, copy=False), names)
        shift = moved - self._projected(x, state)
        if "vector" in state:
            shift = shift @ state["vector"].T
        return profiles.with_features((x + shift).astype(x.dtype, copy=False))

    def _new(self, z: Float[np.ndarray, "n e"]) -> Float[np.ndarray, "n e"]:
        state, config = self.state, self.config
        centroid, none = state["centroid"], np.zeros(len(state["centroid"]), dtype=np.float32)
        moved = z
        for _ in range(config.iterations):
            r = assigned(moved, centroid, none, config.sigma)
            coefficient = ridge(
                r.sum(0)[None],
                (r.T @ z)[None],
                state["weight"],
                state["total"],
                config.ridge,
            )[0]
            before, moved = moved, z - r @ coefficient
            if settled(before, moved, z, config.tolerance):
                break
        return moved

    def _components(self, x: Float[np.ndarray, "n d"]) -> State:
        if self.config.num_components is None:
            return {}
        mean = x.mean(0, dtype=np.float64)
        cov = scatter(x, mean, np.ones(x.shape[1])) / len(x)
        value, vector = principal(cov)
        num = min(max(rank_of(value), 1), self.config.num_components)
        return {"mean": mean, "vector": vector[:, :num].astype(np.float32)}

    @staticmethod
    def _projected(x: Float[np.ndarray, "n d"], state: State) -> Float[np.ndarray, "n e"]:
        if "vector" not in state:
            return np.ascontiguousarray(x, dtype=np.float32)
        return (x - state["mean"].astype(x.dtype)).astype(np.float32, copy=False) @ state["vector"]

    def _first_centroids(self, z: Float[np.ndarray, "n e"], num: int) -> Float[np.ndarray, "k e"]:
        """K-means of directions, on evenly spaced rows if there are many."""
        from sklearn.cluster import KMeans

        seed = derive(self.config.seed, "harmony", "centroids") % 2**32
        some = unit_rows(z[:: -(-len(z) // _MOST_FOR_KMEANS)])
        means = KMeans(min(num, len(some)), n_init=1, max_iter=25, random_state=seed).fit(some)
        return unit_rows(means.cluster_centers_.astype(np.float32))


def integrate(
    z: Float[np.ndarray, "n e"],
    ends: Int[np.ndarray, " b"],
    centroid: Float[np.ndarray, "k e"],
    config: Harmony.Config,
) -> State:
    """Harmony's two steps in turns, from first centroids.

    Args:
        z: Rows, those of a batch together.
        ends: Where each batch ends.
        centroid: Directions of length 1.
        config: The settings.

    Returns:
        `centroid` (k, e), `bias` (b, k) the penalty's share of each log assignment, `coefficient`
        (b, k, e), and of the corrected rows the sums `weight` (k,) and `total` (k, e).
    """
    batches = [slice(start, end) for start, end in itertools.pairwise([0, *ends.tolist()])]
    code = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    share = np.diff(ends, prepend=0) / len(z)
    moved = z
    r = assigned(moved, centroid, np.zeros(len(centroid), dtype=z.dtype), config.sigma)
    for _ in range(config.iterations):
        direction = unit_rows(moved)
        observed = np.add.reduceat(r, [rows.start for rows in batches], dtype=np.float64)
        for _ in range(config.rounds):
            centroid = unit_rows(r.T @ direction)
            diversify(r, observed, direction @ centroid.T, code, share, config)
        sums = np.stack([r[rows].T @ z[rows] for rows in batches]).astype(np.float64)
        coefficient = ridge(observed, sums, 0.0, 0.0, config.ridge).astype(z.dtype)
        before, moved = moved, np.empty_like(z)
        for rows, terms in zip(batches, coefficient, strict=True):
            np.subtract(z[rows], r[rows] @ terms, out=moved[rows])
        if settled(before, moved, z, config.tolerance):
            break
    return {
        "centroid": centroid,
        "bias": penalty(observed, share, config.theta).astype(z.dtype),
        "coefficient": coefficient,
        "weight": r.sum(0, dtype=np.float64),
        "total": (r.T @ moved).astype(np.float64),
    }


def unit_rows(z: Float[np.ndarray, "n e"]) -> Float[np.ndarray, "n e"]:
    """Rows of length 1; a row of zeros stays.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    length = np.sqrt(np.einsum("ne,ne->n", z, z))[:, None]
    return z / np.where(length > 0, length, 1)


def penalty(
    observed: Float[np.ndarray, "b k"], share: Float[np.ndarray, " b"], theta: float
) -> Float[np.ndarray, "b k"]:
    """`theta log((E + 1) / (O + 1))`, with `E` the rows expected of a batch in a cluster.

    >>> penalty(np.array([[3.0], [1.0]]), np.array([0.5, 0.5]), 1.0).round(3).tolist()
    [[-0.288], [0.405]]
    """
    expected = share[:, None] * observed.sum(0)
    return theta * np.log((expected + 1) / (observed + 1))


def assigned(
    moved: Float[np.ndarray, "n e"],
    centroid: Float[np.ndarray, "k e"],
    bias: Float[np.ndarray, " k"],
    sigma: float,
) -> Float[np.ndarray, "n k"]:
    """`softmax_k(-2 (1 - cos(z, y_k)) / sigma + bias_k)`."""
    logit = unit_rows(moved) @ centroid.T
    logit *= 2 / sigma
    logit += bias
    return softmax(logit)


def softmax(logit: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """In place: exponentials that sum to 1 in each row."""
    logit -= logit.max(1, keepdims=True)
    np.exp(logit, out=logit)
    logit /= logit.sum(1, keepdims=True)
    return logit


def diversify(
    r: Float[np.ndarray, "n k"],
    observed: Float[np.ndarray, "b k"],
    cosine: Float[np.ndarray, "n k"],
    code: Int[np.ndarray, " n"],
    share: Float[np.ndarray, " b"],
    config: Harmony.Config,
) -> None:
    """One round of assignments `r` and their sums `observed` by batch, in place.

    Each block is assigned given the assignments of all other rows.
    """
    for number in range(min(_BLOCKS, len(r))):
        block = slice(number, None, _BLOCKS)
        inside = code[block]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(inside)) + 1])
        batch, count = inside[starts], np.diff([*starts, len(inside)])
        observed[batch] -= np.add.reduceat(r[block], starts, dtype=np.float64)
        np.maximum(observed, 0.0, out=observed)  # rounding
        logit = cosine[block] * (2 / config.sigma)
        bias = penalty(observed, share, config.theta)[batch].astype(r.dtype)
        logit += np.repeat(bias, count, axis=0)
        r[block] = softmax(logit)
        observed[batch] += np.add.reduceat(logit, starts, dtype=np.float64)


def ridge(
    num: Float[np.ndarray, "b k"],
    sums: Float[np.ndarray, "b k e"],
    fixed_num: Float[np.ndarray, " k"] | float,
    fixed_sums: Float[np.ndarray, "k e"] | float,
    weight: float,
) -> Float[np.ndarray, "b k e"]:
    """The batch terms of each cluster's weighted ridge regression on an intercept and batches.

    With `n_b` rows and sums `s_b` of batch b in a cluster, and N, S over all rows (those of the
    reference, which have no batch term, among them), the intercept is
    `(S - sum_b n_b s_b / (n_b + w)) / (N - sum_b n_b^2 / (n_b + w))` and the term of batch b
    `(s_b - n_b intercept) / (n_b + w)`.

    >>> num, sums = np.array([[2.0], [2.0]]), np.array([[[2.0]], [[6.0]]])
    >>> ridge(num, sums, 0.0, 0.0, 1.0).ravel().round(3)
    array([-0.667,  0.667])
    """
    pull = num / (num + weight)
    all_num = fixed_num + num.sum(0)
    all_sums = fixed_sums + sums.sum(0)
    below = np.maximum(all_num - (num * pull).sum(0), np.finfo(float).tiny)
    intercept = (all_sums - (pull[..., None] * sums).sum(0)) / below[:, None]
    return (sums - num[..., None] * intercept) / (num + weight)[..., None]


def fixed_point(
    z: Float[np.ndarray, "n e"],
    centroid: Float[np.ndarray, "k e"],
    bias: Float[np.ndarray, " k"],
    coefficient: Float[np.ndarray, "k e"],
    sigma: float,
) -> Float[np.ndarray, "n e"]:
    """Rows moved by the assignment that they have after the move."""
    moved = z - coefficient.mean(0)
    close = _PRECISION * float(np.abs(z).max())  # far below any difference that matters
    for _ in range(_FIXED_POINT):
        before, moved = moved, z - assigned(moved, centroid, bias, sigma) @ coefficient
        if float(np.abs(moved - before).max()) <= close:
            break
    return moved


def settled(
    before: Float[np.ndarray, "n e"],
    after: Float[np.ndarray, "n e"],
    z: Float[np.ndarray, "n e"],
    tolerance: float,
) -> bool:
    """Whether corrections changed by less than a share of their size."""
    change = float(np.square(after - before).sum(dtype=np.float64))
    return change <= tolerance**2 * float(np.square(after - z).sum(dtype=np.float64))
