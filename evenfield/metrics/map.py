"""Mean average precision: does a profile find its own kind before the others?

Kalinin et al., "A versatile information retrieval framework for evaluating profile strength and
similarity", Nat. Commun. 2025, https://doi.org/10.1038/s41467-025-60306-2. Pairs are defined in
the language of the authors' package copairs (`pos_sameby, pos_diffby, neg_sameby, neg_diffby`), and
tables have its column names. No line of it was used.

Where this file departs from copairs 0.5.5, and why:
    p-value         Null draws that EQUAL the observed mean count against it (`rule=">="`): with two
                    replicates and 16 controls a perfect ranking happens by chance in 1 of 17, and
                    copairs 0.5.5 gives it p = 1 / (null_size + 1). Its rule is kept as a switch.
    null            Drawn once for each distinct (positives, negatives), from a generator that
                    depends on nothing but the seed and these two numbers: no cache on the disk, and
                    no influence of what was scored before. As in copairs, members of a group with
                    equal counts share their draws, so that the null of a group's mean is wider than
                    that of independent rankings: the p-value errs on the safe side.
    no negatives    Such a query has nothing to be confused with. It is left out, counted, warned.
    ties            Equal similarities enter together, see `kernels/retrieval.py`; there, positives
                    come first, so that constant features are perfect.
    missing values  A row without a value in a column has no pairs by it; there, an error.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Bool

from evenfield.errors import EvenfieldWarning
from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.kernels.questions import (
    Question,
    Rule,
    average_precision,
    mean_average_precision,
)
from evenfield.metrics.kernels.view import View, column_name, controls_of
from evenfield.types import Profiles

__all__ = ["Question", "average_precision", "mean_average_precision"]

IS_CONTROL = "Metadata_IsControl"


class MeanAveragePrecision(ProfileMetric):
    """What the named questions share: the mean over groups of their mean average precision."""

    aspect = "biology"
    chance = "mean average precision of random rankings with the same numbers of pairs (exact)"
    group: ClassVar[str] = "treatment"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of mean average precision.

        Attributes:
            null_size: Random rankings for each distinct number of positives and negatives.
            threshold: Of the corrected p-value, for the share of groups retrieved.
            seed: Of the random rankings.
            rule: Whether null draws equal to the observed value count against it (`>=`), or the
                strict rule of copairs 0.5.5.
        """

        null_size: int = 10_000
        threshold: float = 0.05
        seed: int = 0
        rule: Rule = ">="

    def question(self, view: View) -> tuple[Question, Profiles, Bool[np.ndarray, " n"]]:
        """The pairs, the table that they are taken from, and the rows that ask."""
        raise NotImplementedError

    def compute(self, view: View) -> Score:
        """Mean over groups; `also` holds the share of groups whose q is below the threshold."""
        question, profiles, queries = self.question(view)
        with warnings.catch_warnings():  # counted in left_out below
            warnings.simplefilter("ignore", EvenfieldWarning)
            table = average_precision(profiles, question, queries=queries)
        num_pos, num_total = table["n_pos_pairs"].to_numpy(), table["n_total_pairs"].to_numpy()
        left_out = {
            "no positive pair": int((queries & (num_pos == 0)).sum()),
            "no negative pair": int((queries & (num_pos > 0) & (num_total == num_pos)).sum()),
        }
        if not table["average_precision"].notna().any():
            return self.score(
                view, value=None, num=0, chance=None, unit=self.group, left_out=left_out
            )
        settings = {name: getattr(self.config, name) for name in self.config.__slots__}
        group = column_name(profiles.metadata, view.columns, self.group)
        found = mean_average_precision(table, [group], **settings)
        null = f"{self.config.null_size} random rankings for each (positives, negatives), "
        return self.score(
            view,
            value=float(found["mean_average_precision"].mean()),
            num=len(found),
            chance=float(found["expected_average_precision"].mean()),
            unit=self.group,
            left_out=left_out,
            also={
                f"share with q < {self.config.threshold:g}": (
                    float(found["below_corrected_p"].mean()),
                    len(found),
                )
            },
            notes=(f"null of the p-values: {null}rule {self.config.rule}",),
            items=found.rename(columns={"mean_average_precision": "score"}),
        )


@PROFILE_METRICS.register("map-activity")
class Activity(MeanAveragePrecision):
    """Do replicates find each other before the negative controls of the query's own plate?"""

    rows = "all"
    needs = ("plate", "control")  # controls may have no treatment

    def question(self, view: View) -> tuple[Question, Profiles, Bool[np.ndarray, " n"]]:
        """Positives: same treatment. Negatives: negative controls of the SAME plate.

        Controls of other plates would make an inactive treatment look active by the plate effect.
        """
        metadata = view.profiles.metadata
        is_control, treated = controls_of(metadata, view.columns)
        profiles = replace(view.profiles, metadata=metadata.assign(**{IS_CONTROL: is_control}))
        question = Question(
            pos_sameby=(column_name(metadata, view.columns, "treatment"), IS_CONTROL),
            neg_sameby=(column_name(metadata, view.columns, "plate"),),
            neg_diffby=(IS_CONTROL,),
        )
        return question, profiles, treated


@PROFILE_METRICS.register("map-replicability")
class Replicability(MeanAveragePrecision):
    """Do replicates find each other before other treatments of the query's own plate?"""

    needs = ("treatment", "plate")

    def question(self, view: View) -> tuple[Question, Profiles, Bool[np.ndarray, " n"]]:
        """Positives: same treatment. Negatives: other treatments of the same plate."""
        metadata = view.profiles.metadata
        treatment = column_name(metadata, view.columns, "treatment")
        plate = column_name(metadata, view.columns, "plate")
        question = Question(pos_sameby=(treatment,), neg_sameby=(plate,), neg_diffby=(treatment,))
        return question, view.profiles, np.ones(len(view), dtype=bool)


@PROFILE_METRICS.register("map-across-domains")
class AcrossDomains(MeanAveragePrecision):
    """Do replicates of OTHER domains come before other treatments?"""

    needs = ("treatment", "domain")

    def question(self, view: View) -> tuple[Question, Profiles, Bool[np.ndarray, " n"]]:
        """Positives: same treatment in another domain. Negatives: all other treatments."""
        metadata = view.profiles.metadata
        treatment = column_name(metadata, view.columns, "treatment")
        domain = column_name(metadata, view.columns, "domain")
        question = Question(pos_sameby=(treatment,), pos_diffby=(domain,), neg_diffby=(treatment,))
        return question, view.profiles, np.ones(len(view), dtype=bool)


@PROFILE_METRICS.register("map-consistency")
class Consistency(MeanAveragePrecision):
    """Do different compounds of one label find each other? On one profile for each treatment."""

    unit = "treatment"
    needs = ("treatment", "compound", "label")
    group: ClassVar[str] = "label"

    def question(self, view: View) -> tuple[Question, Profiles, Bool[np.ndarray, " n"]]:
        """Positives: same label, another compound. Negatives: another label.

        On treatments: replicate wells would weigh compounds by their number of wells.
        """
        metadata = view.profiles.metadata
        label = column_name(metadata, view.columns, "label")
        compound = column_name(metadata, view.columns, "compound")
        question = Question(pos_sameby=(label,), pos_diffby=(compound,), neg_diffby=(label,))
        return question, view.profiles, np.ones(len(view), dtype=bool)
