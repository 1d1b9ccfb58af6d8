"""Silhouettes: are profiles nearer to their own label than to others, and to their own batch?

Rousseeuw, J. Comput. Appl. Math. 1987: s = (b - a) / max(a, b), with a the mean distance to the own
cluster and b the mean distance to the nearest other one. `silhouette-label` is (mean s + 1) / 2;
`silhouette-batch` is, within each label, the mean of 1 - |s| over batches (Luecken et al., Nat.
Methods 2022, https://doi.org/10.1038/s41592-021-01336-8); `bras` is the same with b the mean
distance to ALL other batches (Rautenstrauch and Ohler, "Shortcomings of silhouette in single-cell
integration benchmarking", Nat. Biotechnol. 2025, https://doi.org/10.1038/s41587-025-02743-4): with
the nearest one, two batches that lie together hide that all others are apart.

Sums of distances come from blocks of one product; each block serves both of its sides. Equal to
scikit-learn's and scib-metrics' values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.kernels.chance import NUM_SHUFFLES
from evenfield.metrics.kernels.nearest import Distance, placed
from evenfield.metrics.kernels.similarity import block_rows
from evenfield.metrics.kernels.view import View
from evenfield.seeds import numpy_generator

Between = Literal["nearest", "all"]


def distance_sums(
    features: Float[np.ndarray, "n d"],
    codings: list[Int[np.ndarray, " n"]],
    *,
    distance: Distance = "euclidean",
) -> list[Float[np.ndarray, "n c"]]:
    """For each coding the sum of distances from every row to the members of each cluster.

    Args:
        features: (n, d).
        codings: Arrays (n,) of cluster codes 0, 1, ...; one pass serves all of them.
        distance: `euclidean`, or `cosine` (1 - cosine).

    >>> distance_sums(np.array([[0.0], [3.0], [4.0]]), [np.array([0, 1, 1])])[0].tolist()
    [[0.0, 7.0], [3.0, 1.0], [4.0, 1.0]]
    """
    base = placed(features, distance)
    num = len(base)
    widths = [int(code.max()) + 1 for code in codings]
    member = np.zeros((num, sum(widths)), dtype=base.dtype)
    for code, offset in zip(codings, np.cumsum([0, *widths[:-1]]), strict=True):
        member[np.arange(num), code + offset] = 1
    square = np.einsum("nd,nd->n", base, base)
    total = np.zeros((num, sum(widths)))
    size = block_rows(num)
    for start in range(0, num, size):
        stop = min(start + size, num)
        block = base[start:stop] @ base[start:].T
        if distance == "cosine":
            np.subtract(1, block, out=block)
        else:
            block *= -2
            block += square[start:stop, None]
            block += square[start:]
            np.sqrt(np.maximum(block, 0, out=block), out=block)
        np.fill_diagonal(block, 0)
        total[start:stop] += block @ member[start:]
        total[stop:] += block[:, stop - start :].T @ member[start:stop]
    return np.split(total, np.cumsum(widths)[:-1], axis=1)


def silhouettes(
    sums: Float[np.ndarray, "n c"], code: Int[np.ndarray, " n"], *, between: Between = "nearest"
) -> Float[np.ndarray, " n"]:
    """The silhouette of each row from its sums of distances; 0 for a cluster of one.

    >>> code = np.array([0, 0, 1, 1])
    >>> sums = np.array([[1.0, 8], [1, 8], [8, 1], [8, 1]])
    >>> silhouettes(sums, code).tolist()  # a = 1, b = 4
    [0.75, 0.75, 0.75, 0.75]
    """
    count = np.bincount(code, minlength=sums.shape[1])
    rows = np.arange(len(code))
    within = sums[rows, code] / np.maximum(count[code] - 1, 1)
    if between == "nearest":
        mean = sums / np.maximum(count, 1)
        mean[:, count == 0] = np.inf
        mean[rows, code] = np.inf
        other = mean.min(axis=1)
    else:
        other = (sums.sum(1) - sums[rows, code]) / np.maximum(len(code) - count[code], 1)
    largest = np.maximum(within, other)
    value = np.divide(other - within, largest, out=np.zeros(len(code)), where=largest > 0)
    value[count[code] == 1] = 0
    return value


def orders(code: Int[np.ndarray, " n"], purpose: str) -> list[Int[np.ndarray, " n"]]:
    """The codes, and five random orders of them for the chance level."""
    rng = numpy_generator(0, purpose, "shuffled")
    return [code, *(rng.permutation(code) for _ in range(NUM_SHUFFLES))]


@PROFILE_METRICS.register("silhouette-label")
class LabelSilhouette(ProfileMetric):
    """Are profiles nearer to their own label than to the nearest other? 0.5 = neither."""

    aspect = "biology"
    needs = ("label",)
    chance = "mean value after shuffling the names over the profiles, 5 times"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of the silhouette of labels.

        Attributes:
            distance: `cosine` (1 - cosine) or `euclidean`.
        """

        distance: Distance = "cosine"

    def compute(self, view: View) -> Score:
        """(mean silhouette + 1) / 2."""
        code, names = view.codes("label"), view.names("label")
        if not 2 <= len(names) < len(view):
            notes = (f"{len(names)} labels on {len(view)} rows: at least 2, and fewer than rows",)
            return self.score(view, value=None, num=0, chance=None, notes=notes)
        codings = orders(code, self.name)
        sums = distance_sums(view.profiles.features, codings, distance=self.config.distance)
        value, *shuffled = (
            (silhouettes(total, order) + 1) / 2 for total, order in zip(sums, codings, strict=True)
        )
        return self.score(
            view,
            value=float(value.mean()),
            num=len(view),
            chance=float(np.mean(shuffled)),
            notes=(self.config.distance,),
            items=view.profiles.metadata.assign(score=value),
        )


class WithinLabels(ProfileMetric):
    """What the two silhouettes of batches share."""

    aspect = "batch"
    needs = ("label", "domain")
    chance = "mean value after shuffling the batches within each label, 5 times"
    between: ClassVar[Between]

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of the silhouettes of batches.

        Attributes:
            distance: `cosine` (1 - cosine) or `euclidean`.
        """

        distance: Distance = "cosine"

    def compute(self, view: View) -> Score:
        """Mean over labels of the mean over their profiles of 1 - |silhouette of the batch|."""
        label, domain = view.codes("label"), view.codes("domain")
        names, values, chances, counts = [], [], [], []
        for code, name in enumerate(view.names("label")):
            rows = np.flatnonzero(label == code)
            own = np.unique(domain[rows], return_inverse=True)[1]
            if not 1 <= own.max() < len(rows) - 1:
                continue
            codings = orders(own, self.name)
            sums = distance_sums(
                view.profiles.features[rows], codings, distance=self.config.distance
            )
            value, *shuffled = (
                float((1 - np.abs(silhouettes(total, order, between=self.between))).mean())
                for total, order in zip(sums, codings, strict=True)
            )
            names.append(name)
            values.append(value)
            chances.append(float(np.mean(shuffled)))
            counts.append(len(rows))
        num = len(names)
        return self.score(
            view,
            value=float(np.mean(values)) if num else None,
            num=num,
            chance=float(np.mean(chances)) if num else None,
            unit="label",
            left_out={
                "label with one batch, or a batch for each row": len(view.names("label")) - num
            },
            notes=(self.config.distance,),
            items=pd.DataFrame(
                {view.column("label").name: names, "score": values, "num_rows": counts}
            ),
        )


@PROFILE_METRICS.register("silhouette-batch")
class BatchSilhouette(WithinLabels):
    """1 - |silhouette of the batch| within labels: 1 = batches overlap; blind to some patterns."""

    between: ClassVar[Between] = "nearest"


@PROFILE_METRICS.register("bras")
class Bras(WithinLabels):
    """1 - |silhouette of the batch| within labels, against all other batches: 1 = they overlap."""

    between: ClassVar[Between] = "all"
