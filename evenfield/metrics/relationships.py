"""Recall of known relationships in the tails of all pairwise cosines.

As in the EFAAR benchmarks (Celik et al., "Building, benchmarking, and exploring perturbative maps
of transcriptional and morphological data", PLoS Comput. Biol. 2024,
https://doi.org/10.1371/journal.pcbi.1012463): of the known pairs (two members of a protein complex,
say) the share whose cosine lies below the 5th or above the 95th percentile of the cosines of all
pairs of profiles.

Where this file departs from the authors' code, and why:
    chance     It is taken as twice the percentile. Here the names are permuted over the profiles:
               the mean is nearly the same, but pairs share names and are not independent, so that
               the p-value comes from the permutations. Neither sees that an entity which is like
               all others, and in many known pairs, lifts recall without any relationship:
               `also["members with anyone"]` is the share of tails among ALL pairs of the entities,
               each weighted by its number of known pairs. That is to be beaten.
    few names  Fewer than 20 entities give no score.
    joins      Pairs are joined by name, never by row; a name that the table lacks is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from evenfield.errors import InputError
from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.kernels.similarity import block_rows, unit_rows
from evenfield.metrics.kernels.view import View, consensus
from evenfield.seeds import numpy_generator

LEAST_ENTITIES = 20
PAIRS_FOR_QUANTILES = 2_000_000
"""Above this number of pairs the percentiles are those of a random sample of so many."""
ROWS_AT_ONCE = 16_384


def pairs_of_sets(sets: Mapping[str, Iterable[str]]) -> tuple[tuple[str, str], ...]:
    """All pairs of two members of one set, each once, names in sorted order.

    >>> pairs_of_sets({"complex": ["b", "a"], "pathway": ["a", "b", "c"]})
    (('a', 'b'), ('a', 'c'), ('b', 'c'))
    """
    found = {pair for members in sets.values() for pair in combinations(sorted(set(members)), 2)}
    return tuple(sorted(found))


def tails(
    unit: Float[np.ndarray, "n d"], percentile: float, rng: np.random.Generator
) -> tuple[float, float]:
    """The cosines that cut off `percentile` per cent of all pairs at either end."""
    num = len(unit)
    total = num * (num - 1) // 2
    if total <= PAIRS_FOR_QUANTILES:
        a, b = np.triu_indices(num, 1)
    else:
        a = rng.integers(num, size=PAIRS_FOR_QUANTILES)
        b = (a + 1 + rng.integers(num - 1, size=len(a))) % num  # any other row
    low, high = np.percentile(cosines(unit, a, b), [percentile, 100 - percentile])
    return float(low), float(high)


def cosines(
    unit: Float[np.ndarray, "n d"], a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"]
) -> Float[np.ndarray, " p"]:
    """The product of row a[i] and row b[i], in blocks."""
    found = np.empty(len(a))
    for start in range(0, len(a), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        found[part] = np.einsum("pd,pd->p", unit[a[part]], unit[b[part]])
    return found


def tail_shares(
    unit: Float[np.ndarray, "n d"], rows: Int[np.ndarray, " r"], low: float, high: float
) -> Float[np.ndarray, " r"]:
    """For each of `rows` the share of its pairs with all other rows that lie in the tails."""
    share = np.empty(len(rows))
    size = block_rows(len(unit))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        product = unit[part] @ unit.T
        outside = (product <= low) | (product >= high)
        outside[np.arange(len(part)), part] = False
        share[start : start + size] = outside.sum(1) / (len(unit) - 1)
    return share


@PROFILE_METRICS.register("relationship-recall")
class RelationshipRecall(ProfileMetric):
    """Share of known pairs whose cosine is in the tails of all pairs."""

    aspect = "biology"
    unit = "treatment"
    needs = ("treatment", "compound")
    chance = "mean recall after permuting the names over the profiles"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of relationship recall.

        Attributes:
            pairs: Known pairs of names in the column that plays `compound` (genes, compounds).
            percentile: Per cent of all pairs in either tail.
            num_permutations: Of the names, for chance and p-value.
            seed: Of permutations and samples.
        """

        pairs: tuple[tuple[str, str], ...] = ()
        percentile: float = 5.0
        num_permutations: int = 200
        seed: int = 0

    def compute(self, view: View) -> Score:
        """The recall on one profile for each compound; its p-value is in the notes."""
        settings = self.config
        if not settings.pairs:
            raise InputError(
                "relationship-recall was given no known pairs",
                fix="give Config(pairs=...), for example from `pairs_of_sets`",
            )
        column = str(view.column("compound").name)
        profiles = consensus(view.profiles, [column])
        place = {str(name): row for row, name in enumerate(profiles.metadata[column])}
        wanted = {(min(a, b), max(a, b)) for a, b in settings.pairs if a != b}
        known = sorted(pair for pair in wanted if pair[0] in place and pair[1] in place)
        left_out = {"pair with a name that is not in the table": len(wanted) - len(known)}
        if len(place) < LEAST_ENTITIES or not known:
            reason = (
                f"{len(place)} names, {len(known)} known pairs: at least {LEAST_ENTITIES} and 1"
            )
            return self.score(
                view,
                value=None,
                num=0,
                chance=None,
                unit="pair",
                left_out=left_out,
                notes=(reason,),
            )
        unit = unit_rows(profiles.features, np.float32)
        rng = numpy_generator(settings.seed, "relationship-recall")
        low, high = tails(unit, settings.percentile, rng)
        a, b = (np.array([place[pair[side]] for pair in known]) for side in (0, 1))
        value = cosines(unit, a, b)
        hit = (value <= low) | (value >= high)
        permuted = np.empty(settings.num_permutations)
        for number in range(settings.num_permutations):
            order = rng.permutation(len(unit))
            chance = cosines(unit, order[a], order[b])
            permuted[number] = ((chance <= low) | (chance >= high)).mean()
        members, weight = np.unique(np.concatenate([a, b]), return_counts=True)
        anyone = np.average(tail_shares(unit, members, low, high), weights=weight)
        p = (1 + int((permuted >= hit.mean()).sum())) / (1 + settings.num_permutations)
        return self.score(
            view,
            value=float(hit.mean()),
            num=len(known),
            chance=float(permuted.mean()),
            unit="pair",
            left_out=left_out,
            also={"members with anyone": (float(anyone), len(members))},
            notes=(
                f"p = {p:.2g} ({settings.num_permutations} permutations of the names, >= counted)",
                f"tails: cosine <= {low:.3g} or >= {high:.3g} "
                f"({settings.percentile:g} % of all pairs at either end)",
            ),
            items=pd.DataFrame(
                {
                    "Metadata_A": [pair[0] for pair in known],
                    "Metadata_B": [pair[1] for pair in known],
                    "cosine": value,
                    "score": hit.astype(np.float64),
                }
            ),
        )
