"""Pairs of images with the same treatment from different units: what batches differ in is not it.

A draw costs O(batch) whatever the size of the screen: with the images sorted by (treatment, unit)
the partners of an image are one run of its treatment without one run inside it, so that a uniform
draw is one integer, moved past the gap.

Haslum et al., "Metadata-guided consistency learning for high content images", MIDL 2023,
https://arxiv.org/abs/2212.11595. Where this departs from the released code: what happens to an
image without a partner is a stated choice, counted and reported (the code raises, or takes any
image of the treatment, the same one among them); partners may be kept away from the same position
on the plate, since in a layout that repeats the position says the treatment.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from evenfield.data.roles import Roles, some
from evenfield.data.sampler import Rows, Sampler
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.seeds import numpy_generator

Fallback = Literal["other-well", "same-image", "drop"]
UNKNOWN = -1
QUICK_DRAWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """How many images have a partner, and what becomes of the others.

    Attributes:
        num_images: Images that could be anchors.
        num_without: Those without a partner in another unit.
        num_other_well: Of these, paired with another well instead.
        num_same_image: Of these, paired with themselves.
        num_dropped: Of these, left out of the training.
        treatments: Treatments that have at least one image without a partner.
    """

    num_images: int
    num_without: int
    num_other_well: int
    num_same_image: int
    num_dropped: int
    treatments: tuple[str, ...]

    def __str__(self) -> str:
        if not self.num_without:
            return f"all {self.num_images} images have a partner in another unit"
        done = [
            f"{number} {what}"
            for number, what in (
                (self.num_other_well, "are paired with another well"),
                (self.num_same_image, "are paired with themselves"),
                (self.num_dropped, "are left out"),
            )
            if number
        ]
        return (
            f"{self.num_without} of {self.num_images} images have no image of their treatment in "
            f"another unit: {', '.join(done)} (treatments: {some(self.treatments, 5)})"
        )


class Others:
    """Uniform draws of a row with the same key and another group (and another place, if asked).

    Args:
        pool: Rows that may be drawn.
        key: (N,) codes of all rows of the manifest; -1 pairs with nothing.
        group: (N,) codes: the partner's must differ.
        place: (N,) codes: the partner's must differ, too; None = it need not.
    """

    def __init__(
        self, pool: Rows, key: np.ndarray, group: np.ndarray, place: np.ndarray | None = None
    ) -> None:
        pool = np.asarray(pool, np.int64)
        pool = pool[key[pool] != UNKNOWN]
        self._key, self._group, self._place = key, group, place
        order = np.lexsort((group[pool], key[pool]))
        self._sorted = pool[order]
        self._start, self._end = _runs(key, self._sorted)
        both = _joint(key, group)
        gap_start, gap_end = _runs(both, self._sorted)
        gap = gap_end - gap_start
        total = (self._end - self._start) - gap
        # One row of numbers for each image: a draw reads them together, not from four arrays.
        self._table = np.stack([self._start, total, gap_start, gap], 1)
        self._size = total.copy()
        if place is not None:
            here, there = _joint(key, place), _joint(both, place)
            self._size = self._size - _counts(here, pool) + _counts(there, pool)
        self._size[key == UNKNOWN] = 0

    def num(self, rows: Rows) -> np.ndarray:
        """(n,) how many partners each row has."""
        return self._size.take(rows)

    def draw(self, rng: np.random.Generator, rows: Rows) -> Rows:
        """One partner of each row, uniformly; every row must have one."""
        found = self._other_group(rng, rows)
        if self._place is None:
            return found
        for _ in range(QUICK_DRAWS):
            wrong = np.flatnonzero(self._place.take(found) == self._place.take(rows))
            if not len(wrong):
                return found
            found[wrong] = self._other_group(rng, rows[wrong])
        # Uniform given what came before: those whose partners are few are listed.
        for at in np.flatnonzero(self._place[found] == self._place[rows]):
            row = rows[at]
            run = self._sorted[self._start[row] : self._end[row]]
            other = self._group[run] != self._group[row]
            found[at] = rng.choice(run[other & (self._place[run] != self._place[row])])
        return found

    def _other_group(self, rng: np.random.Generator, rows: Rows) -> Rows:
        start, total, gap_start, gap = self._table.take(rows, 0).T
        # The largest total is far below 2^53: every row has its share to 16 digits.
        drawn = start + (rng.random(len(rows)) * total).astype(np.int64)
        return self._sorted.take(drawn + gap * (drawn >= gap_start))


class Pairs(Sampler):
    """Anchors of another sampler, each with a partner: rows (n, 2).

    Args:
        anchors: What draws the anchors.
        partners: Other unit; rows without one go to the fall-back.
        wells: Other well of the same treatment, for the fall-back `other-well`; None = `same-image`
            (an image without either is paired with itself).
        seed: The run's seed.
    """

    def __init__(
        self, anchors: Sampler, partners: Others, wells: Others | None, *, seed: int
    ) -> None:
        self._anchors, self._choices = anchors, [partners, *([wells] if wells else [])]
        self._seed = seed
        self.passes_per_epoch = anchors.passes_per_epoch

    def rows(self, step: int) -> Rows:
        """(n, 2) anchors and partners of one batch."""
        rows = self._anchors.rows(step)
        rng = numpy_generator(self._seed, "pairs", step)
        if (self._choices[0].num(rows) > 0).all():
            return np.stack([rows, self._choices[0].draw(rng, rows)], 1)
        partner, left = rows.copy(), np.arange(len(rows))
        for others in self._choices:
            has = others.num(rows[left]) > 0
            able = left[has]
            if len(able):
                partner[able] = others.draw(rng, rows[able])
            left = left[~has]
        return np.stack([rows, partner], 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partners:
    """Who may be paired with whom in a training set.

    Attributes:
        rows: The anchors that stay.
        partners: Draws from other units.
        wells: Draws from other wells; None where the fall-back is another one.
        report: What was found.
    """

    rows: Rows
    partners: Others
    wells: Others | None
    report: PairReport


def find_partners(
    manifest: pd.DataFrame,
    rows: Rows,
    roles: Roles,
    *,
    by: Literal["domain", "batch", "plate", "source"],
    fallback: Fallback = "other-well",
    other_position: bool = False,
) -> Partners:
    """Partners of training rows among themselves: the same treatment, another unit.

    Batches and plates of different sources are different, whatever their names. An image without a
    named treatment has no partner. The report is a warning where not every image has one.

    Args:
        manifest: Of the screen.
        rows: Training rows.
        roles: Which column says the treatment, and which the domain.
        by: The unit that a partner's must differ from.
        fallback: What becomes of images without a partner.
        other_position: Whether partners lie at another position (`Metadata_Well`), in the
            fall-back, too.

    Raises:
        InputError: The column of the treatment is missing; or images without a partner are dropped
            and none is left.
    """
    if roles.treatment not in manifest:
        raise InputError(
            f"the manifest has no column {roles.treatment!r}, which says the treatment of pairs",
            fix="name the column of treatments in the roles of the screen, or set --train.pairs "
            "none",
        )
    rows = np.asarray(rows, np.int64)
    source = ["Metadata_Source"] if "Metadata_Source" in manifest else []
    unit_columns = {
        "domain": [roles.domain],
        "batch": [*source, "Metadata_Batch"],
        "plate": [*source, "Metadata_Plate"],
        "source": source,
    }[by]
    treatment = manifest[roles.treatment].astype("string").fillna("")
    key = _factorize(manifest, [roles.treatment])
    key[(treatment == "").to_numpy()] = UNKNOWN
    unit = _factorize(manifest, unit_columns)
    well = _factorize(manifest, [*source, "Metadata_Plate", "Metadata_Well"])
    place = _factorize(manifest, ["Metadata_Well"]) if other_position else None
    partners = Others(rows, key, unit, place)
    wells = Others(rows, key, well, place) if fallback == "other-well" else None
    without = rows[partners.num(rows) == 0]
    in_other_well = 0 if wells is None else int((wells.num(without) > 0).sum())
    dropped = len(without) if fallback == "drop" else 0
    report = PairReport(
        num_images=len(rows),
        num_without=len(without),
        num_other_well=in_other_well,
        num_same_image=len(without) - in_other_well - dropped,
        num_dropped=dropped,
        treatments=tuple(sorted(set(treatment.iloc[without]))),
    )
    if dropped == len(rows):
        raise InputError(
            f"no training image has another of its treatment in another {by}",
            fix="choose another unit (--train.pairs) or fall-back (--train.pair-fallback)",
        )
    if len(without):
        warnings.warn(f"pairs by {by}: {report}", EvenfieldWarning, stacklevel=2)
    kept = rows[partners.num(rows) > 0] if fallback == "drop" else rows
    return Partners(rows=kept, partners=partners, wells=wells, report=report)


def _factorize(manifest: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Codes of the combinations of some columns; one for all rows if there is no column."""
    code = np.zeros(len(manifest), np.int64)
    for column in columns:
        code = _joint(code, pd.factorize(manifest[column].astype("string").fillna(""))[0])
    return code


def _joint(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Codes from 0 of the combinations of two codings."""
    other = other - other.min(initial=0)
    combined = (one - one.min(initial=0)) * (other.max(initial=0) + 1) + other
    return np.unique(combined, return_inverse=True)[1]


def _runs(code: np.ndarray, ordered: Rows) -> tuple[np.ndarray, np.ndarray]:
    """For all rows: where the run of their code starts and ends in rows sorted by code.

    A row whose code is not there has the empty run 0 to 0.
    """
    values = code[ordered]
    change = np.flatnonzero(np.diff(values)) + 1
    edges = np.concatenate([[0], change, [len(ordered)]])
    start = np.zeros(code.max(initial=0) + 2, np.int64)
    end = start.copy()
    if len(ordered):
        start[values[edges[:-1]]], end[values[edges[:-1]]] = edges[:-1], edges[1:]
    place = np.where(code < 0, len(start) - 1, code)
    return start[place], end[place]


def _counts(code: np.ndarray, pool: Rows) -> np.ndarray:
    """For all rows: how many rows of the pool have their code."""
    return np.bincount(code[pool], minlength=code.max(initial=0) + 1)[code]
