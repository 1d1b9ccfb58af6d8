"""Accuracy by groups of images, as WILDS scores it: on average, in each group, in the worst.

Koh et al., ICML 2021 (arXiv 2012.07421); group numbers as in `wilds` 2.0.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from evenfield.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAccuracy:
    """How often predictions are right.

    Attributes:
        average: Over all images (`acc_avg`).
        worst: In the worst group that holds an image (`acc_wg`).
        by_group: (g,) in each group; NaN where it holds none.
        count: (g,) images of each group.
    """

    average: float
    worst: float
    by_group: Float[np.ndarray, " g"]
    count: Int[np.ndarray, " g"]


def group_ids(fields: Sequence[Int[np.ndarray, " n"]]) -> tuple[Int[np.ndarray, " n"], int]:
    """One number for each combination of fields, and how many there can be; the first is fastest.

    A field has as many values as its largest plus one, so that groups may be empty.

    Args:
        fields: Codes from 0, one array a field, in the order of the metadata.

    Raises:
        InputError: There is no field or no image, or a code is negative.

    >>> country, year = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 2])
    >>> group_ids([country, year])
    (array([0, 1, 2, 5]), 6)
    """
    if not fields or not len(fields[0]) or min(int(field.min()) for field in fields) < 0:
        raise InputError("groups need fields of codes from 0", fix="leave out unknown values")
    number, num = np.zeros(len(fields[0]), np.int64), 1
    for field in fields:
        number += num * np.asarray(field, np.int64)
        num *= int(field.max()) + 1
    return number, num


def group_accuracy(
    predicted: Int[np.ndarray, " n"],
    label: Int[np.ndarray, " n"],
    group: Int[np.ndarray, " n"],
    num_groups: int,
) -> GroupAccuracy:
    """Accuracy on average, in each group, and in the worst.

    Raises:
        InputError: There is no image.

    >>> found = group_accuracy(np.array([1, 1, 0]), np.array([1, 0, 0]), np.array([0, 0, 2]), 3)
    >>> round(found.average, 3), found.worst, found.by_group.tolist()
    (0.667, 0.5, [0.5, nan, 1.0])
    """
    if not len(label):
        raise InputError("there is nothing to score", fix="give at least one image")
    right = predicted == label
    count = np.bincount(group, minlength=num_groups)
    rights = np.bincount(group, weights=right, minlength=num_groups)
    with np.errstate(invalid="ignore"):
        by_group = rights / count
    return GroupAccuracy(
        average=float(right.mean()),
        worst=float(np.nanmin(by_group)),
        by_group=by_group,
        count=count,
    )
