"""Mechanism of the nearest treatment, not the same compound (NSC), nor the same batch (NSCB).

Ljosa et al., "Comparison of methods for image-based profiling of cellular morphological responses
to small-molecule treatment", J. Biomol. Screen. 2013, https://doi.org/10.1177/1087057113503553;
the second rule: Ando, McLean and Berndl, "Improving phenotypic measurements in high-content imaging
screens", bioRxiv 2017, https://doi.org/10.1101/161422. The rules are taken from repositories that
cite the papers.

A treatment (compound and dose, median of its wells) is given the label of its nearest admissible
treatment by cosine. NSC forbids the same compound, NSCB the same compound or the same batch.

What is stated here because published numbers leave it open:
    denominator   `value` counts every treatment with an admissible neighbour. Those without one OF
                  THEIR LABEL are wrong by construction: they bound the value by `ceiling`, and
                  `also["reachable"]` is the share of the others. A bare NSCB means neither.
    ties          Equal similarities are not resolved by row order: a treatment gets the share of
                  its nearest neighbours that have its label, and ties are counted in the notes.
    unlabelled    Neither scored nor a neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from evenfield.errors import InputError
from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.kernels.similarity import block_rows, unit_rows
from evenfield.metrics.kernels.view import View

EQUAL = 1e-12
"""Cosines in float64 that differ by less are a tie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """What the nearest admissible neighbours of each row say.

    Attributes:
        right: (n,) share of the nearest neighbours (several at a tie) that have the row's label.
        num_nearest: (n,) how many are nearest; 0 = nobody is admissible.
        num_reachable: (n,) how many admissible rows have the row's label.
        random: (n,) share of the admissible rows that do.
    """

    right: Float[np.ndarray, " n"]
    num_nearest: Int[np.ndarray, " n"]
    num_reachable: Int[np.ndarray, " n"]
    random: Float[np.ndarray, " n"]


def nearest_label(
    features: Float[np.ndarray, "n d"],
    label: Int[np.ndarray, " n"],
    forbid: Sequence[Int[np.ndarray, " n"]],
) -> Nearest:
    """How right the nearest admissible row's label is.

    Args:
        features: (n, d) one row for each treatment.
        label: (n,) codes.
        forbid: Codes; a row that shares any of them is no neighbour.

    Raises:
        InputError: A row of zeros, or nothing forbids a row itself.

    >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> nearest_label(x, np.array([0, 1, 1]), [np.arange(3)]).right.tolist()
    [0.0, 0.0, 1.0]
    """
    if not forbid:
        raise InputError(
            "every row would be its own nearest neighbour", fix="forbid the same compound"
        )
    unit = unit_rows(features, np.float64)
    num = len(unit)
    right, share = np.zeros((2, num))
    nearest, reachable = np.zeros((2, num), dtype=np.int64)
    for start in range(0, num, size := block_rows(num)):
        rows = slice(start, start + size)
        similarity = unit[rows] @ unit.T
        admissible = np.ones(similarity.shape, dtype=bool)
        for codes in forbid:
            admissible &= np.not_equal.outer(codes[rows], codes)
        similarity[~admissible] = -np.inf
        best = similarity.max(axis=1, keepdims=True)
        at_best = (similarity >= best - EQUAL) & admissible
        same = np.equal.outer(label[rows], label)
        nearest[rows] = at_best.sum(1)
        reachable[rows] = (admissible & same).sum(1)
        right[rows] = (at_best & same).sum(1) / np.maximum(nearest[rows], 1)
        share[rows] = reachable[rows] / np.maximum(admissible.sum(1), 1)
    return Nearest(right=right, num_nearest=nearest, num_reachable=reachable, random=share)


@PROFILE_METRICS.register("nsc")
class NotSameCompound(ProfileMetric):
    """Share of treatments whose nearest treatment of ANOTHER compound has their label."""

    aspect = "biology"
    unit = "treatment"
    needs: ClassVar[tuple[str, ...]] = ("treatment", "compound", "label")
    chance = "share of the largest label among the scored treatments"
    forbidden: ClassVar[tuple[str, ...]] = ("compound",)

    def compute(self, view: View) -> Score:
        """The share, its ceiling, and the share of those that can be right at all."""
        label = view.codes("label")
        forbid = [view.codes(role) for role in self.forbidden]
        found = nearest_label(view.profiles.features, label, forbid)
        right, scored = found.right, found.num_nearest > 0
        num = int(scored.sum())
        left_out = {"no admissible neighbour": int((~scored).sum())}
        if not num:
            return self.score(
                view,
                value=None,
                num=0,
                chance=None,
                left_out=left_out,
                notes=("nothing is scored: every treatment shares what is forbidden",),
            )
        can = scored & (found.num_reachable > 0)
        items = view.profiles.metadata[scored].assign(
            score=right[scored], reachable=can[scored], tied=found.num_nearest[scored] - 1
        )
        ties = int((found.num_nearest > 1).sum())
        return self.score(
            view,
            value=float(right[scored].sum() / num),
            num=num,
            chance=float(np.bincount(label[scored]).max() / num),
            ceiling=int(can.sum()) / num,
            left_out=left_out,
            also={
                "reachable": (float(right[can].mean()) if can.any() else 0.0, int(can.sum())),
                "a random admissible neighbour": (float(found.random[scored].mean()), num),
            },
            notes=(f"{ties} ties",) if ties else (),
            items=items,
        )


@PROFILE_METRICS.register("nscb")
class NotSameCompoundOrBatch(NotSameCompound):
    """Share of treatments whose nearest treatment of another compound AND batch has their label.

    A treatment that lies in several domains is a treatment of each of them.
    """

    needs = ("treatment", "compound", "label", "domain")
    forbidden = ("compound", "domain")
