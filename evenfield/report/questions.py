"""What profiles are asked on the page, and the answers with intervals and baselines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from evenfield.errors import EvenfieldWarning
from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.baselines import cell_count_profiles
from evenfield.metrics.bootstrap import LEAST_UNITS, Interval, score_interval
from evenfield.metrics.kernels.view import Columns
from evenfield.report.aligned import Aligned, level_name, levels
from evenfield.report.words import PLURAL

CELL_COUNT = "cell count alone"
MOST_CROSS = 0.5
"""A level is crossed if at least this share of treatments is found in two or more of its names."""
_CELL_COUNT_IN_PLATE = "cell count alone, rank within plate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One measure with the column that plays the domain.

    Attributes:
        key: What it is called in code.
        name: What it is called on the page.
        asks: The question in one sentence.
        measure: What the number is, with its direction.
        metric: A name of `PROFILE_METRICS`.
        level: The column that plays the domain, or "".
        by: The column whose names are resampled for an interval.
        match: Columns that name a scored item, so that tables are compared item by item.
        doubt: Why the number cannot be read as it stands, if so; the verdict then speaks of others.
    """

    key: str
    name: str
    asks: str
    measure: str
    metric: str
    level: str
    by: str
    match: tuple[str, ...]
    doubt: str = ""

    @property
    def scorer(self) -> ProfileMetric:
        """The measure, ready to be called on a table."""
        return PROFILE_METRICS[self.metric](columns=Columns(domain=self.level or "Metadata_Batch"))

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return PROFILE_METRICS[self.metric].direction == "higher"

    @property
    def is_biology(self) -> bool:
        """Whether it asks what is kept (rather than what is removed)."""
        return PROFILE_METRICS[self.metric].aspect == "biology"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One table's number.

    Attributes:
        table: The table's name.
        score: The number, its chance level, ceiling and denominator.
        low: Lower end of a 95 % interval, if there is one.
        high: Its upper end.
        gain: The difference to the first table on the same items, with a paired interval.
    """

    table: str
    score: Score
    low: float | None
    high: float | None
    gain: Interval | None = None

    @property
    def value(self) -> float:
        """The number."""
        return float(self.score.value or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question with every table's answer.

    Attributes:
        question: What was asked.
        answers: One for each table, in order.
        baselines: The number that cell counts alone reach, by name.
    """

    question: Question
    answers: tuple[Answer, ...]
    baselines: dict[str, float]

    def of(self, table: str) -> Answer:
        """The answer of one table."""
        return next(answer for answer in self.answers if answer.table == table)


def questions(aligned: Aligned) -> list[Question]:
    """What this design can be asked, biology first, the hardest first."""
    metadata = aligned.metadata
    treated = ~metadata["Metadata_ControlType"].isin(["negcon", "empty"])
    controls = metadata["Metadata_ControlType"] == "negcon"
    labels = bool((metadata.loc[treated, "Metadata_Label"] != "").any())
    found: list[Question] = []
    places = levels(metadata)
    kinds = [(column, level_name(column)) for column in places]
    alone = _alone(metadata[treated], places)
    if metadata["Metadata_Treatment"].ne("").any():
        found += [
            _across(column, name, _alone(metadata[treated], places)) for column, name in kinds
        ]
        found.append(
            Question(
                key="replicates",
                name="Replicates against their plate",
                asks="Do wells of one treatment find each other, wherever they are, before other "
                "treatments of their own plate?",
                measure="mean average precision",
                metric="map-replicability",
                level="",
                by="Metadata_Treatment",
                match=("Metadata_Treatment",),
            )
        )
        if controls.any():
            found.append(
                Question(
                    key="activity",
                    name="Wells against controls",
                    asks="Do wells of one treatment find each other before the negative controls "
                    "of their own plate?",
                    measure="mean average precision",
                    metric="map-activity",
                    level="",
                    by="Metadata_Treatment",
                    match=("Metadata_Treatment",),
                )
            )
    if labels:
        what = aligned.called.get("Metadata_Label", "Metadata_Label").removeprefix("Metadata_")
        noun = "label" if what == "Label" else what
        found.append(
            Question(
                key="label",
                name=f"Compounds of one {noun}",
                asks=f"Do different compounds of one {noun} find each other before other ones "
                "(medians of wells)?",
                measure="mean average precision",
                metric="map-consistency",
                level="",
                by="Metadata_Label",
                match=("Metadata_Label",),
            )
        )
        coarse = kinds[0] if kinds and kinds[0][0] != "Metadata_Plate" else None
        if coarse is not None:
            found.append(
                Question(
                    key="nearest",
                    name=f"Nearest compound of another {coarse[1]}",
                    asks=f"Has the nearest treatment of another compound and another {coarse[1]} "
                    f"the same {noun} (medians of wells)?",
                    measure="share right",
                    metric="nscb",
                    level=coarse[0],
                    by="Metadata_Compound",
                    match=("Metadata_Treatment",),
                )
            )
    for column, name in kinds:
        found.append(_neighbours(column, name, alone, _unit(metadata, column)))
    if controls.any() and kinds:
        found.append(_probe(*kinds[-1], _unit(metadata, kinds[-1][0])))
    return found


def _alone(treated: pd.DataFrame, places: Sequence[str]) -> str:
    """The coarsest level that most treatments never leave, or ""."""
    for column in places:
        spread = treated[treated["Metadata_Treatment"] != ""].groupby("Metadata_Treatment")[column]
        if len(spread) and float((spread.nunique() > 1).mean()) < MOST_CROSS:
            return column
    return ""


def _across(column: str, name: str, alone: str) -> Question:
    others = PLURAL.get(name, name + "s")
    doubt = ""
    if alone and alone != column:
        unit = level_name(alone)
        doubt = (
            f"most treatments live in one {unit}, so that replicates share the effect of their "
            f"{unit} and most others do not: a {unit} effect raises this number, and a correction "
            "that removes it lowers it"
        )
    return Question(
        key=f"across-{name}",
        name=f"Replicates on other {others}",
        asks=f"Do wells of one treatment on other {others} come before all other treatments?",
        measure="mean average precision",
        metric="map-across-domains",
        level=column,
        by="Metadata_Treatment",
        match=("Metadata_Treatment",),
        doubt=doubt,
    )


def _unit(metadata: pd.DataFrame, column: str) -> str:
    """What is resampled: the level itself, or plates where it has too few names for an interval."""
    return column if metadata[column].nunique() >= LEAST_UNITS else "Metadata_Plate"


def _neighbours(column: str, name: str, alone: str, unit: str) -> Question:
    doubt = ""
    if alone == column:
        doubt = (
            f"most treatments live in one {name}, so that wells of one {name} are near each other "
            "for a good reason, too"
        )
    return Question(
        key=f"same-{name}",
        name=f"Nearest wells of the same {name}",
        asks=f"How often is the nearest well of a treated well one of its own {name}?",
        measure="share of wells",
        metric="same-domain-neighbours",
        level=column,
        by=unit,
        match=("Metadata_Plate", "Metadata_Well"),
        doubt=doubt,
    )


def _probe(column: str, name: str, unit: str) -> Question:
    return Question(
        key=f"probe-{name}",
        name=f"Controls that tell their {name}",
        asks=f"Can a linear model tell the {name} of a negative control that it has not seen?",
        measure="share of controls",
        metric="domain-probe-controls",
        level=column,
        by=unit,
        match=("Metadata_Plate", "Metadata_Well"),
    )


def ask(aligned: Aligned) -> tuple[list[Asked], list[tuple[str, str]]]:
    """Every question that can be answered, and what must be said about those that cannot.

    A question that fewer than three units could answer is left out, with a note.
    """
    found: list[Asked] = []
    notes: list[tuple[str, str]] = []
    for question in questions(aligned):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", EvenfieldWarning)
            asked = _asked(question, aligned)
        for text in dict.fromkeys(
            str(item.message) for item in told if issubclass(item.category, EvenfieldWarning)
        ):
            notes.append(("info", f"{question.name}: {text[:1].lower()}{text[1:]}."))
        if isinstance(asked, str):
            notes.append(("warning", asked))
        else:
            found.append(asked)
            if question.doubt:
                notes.append(("warning", f"“{question.name}”: {question.doubt}."))
    return found, notes


def _asked(question: Question, aligned: Aligned) -> Asked | str:
    scorer = question.scorer
    first = scorer(aligned.tables[0])
    num = first.items[question.by].nunique() if len(first.items) else 0
    if first.value is None or num < LEAST_UNITS:
        unit = level_name(question.by)
        reasons = "; ".join(f"{count} with {why}" for why, count in first.left_out.items())
        return (
            f"“{question.name}” is not asked: this design has {num} "
            f"{unit if num == 1 else PLURAL.get(unit, unit + 's')} that could answer it, three "
            f"are needed{f' (left out: {reasons})' if reasons else ''}."
        )
    answers: list[Answer] = []
    for name, table in zip(aligned.names, aligned.tables, strict=True):
        score = first if not answers else scorer(table)
        bounds = score_interval(score, question.by)
        gain = _gain(question, first, score) if answers else None
        answers.append(Answer(table=name, score=score, low=bounds.low, high=bounds.high, gain=gain))
    return Asked(question=question, answers=tuple(answers), baselines=_baselines(scorer, aligned))


def _gain(question: Question, first: Score, score: Score) -> Interval | None:
    """The difference item by item; items that one of the two could not score are left out."""
    match = list(question.match)
    columns = list(dict.fromkeys([*match, question.by, "score"]))
    mine = score.items[columns].merge(first.items[[*match, "score"]], on=match)
    if not len(mine):
        return None
    difference = mine["score_x"].astype(np.float64) - mine["score_y"].astype(np.float64)
    items = pd.DataFrame({question.by: mine[question.by], "score": difference})
    value = float(difference.mean())
    return score_interval(replace(score, value=value, items=items), question.by)


def _baselines(scorer: ProfileMetric, aligned: Aligned) -> dict[str, float]:
    if aligned.count is None:
        return {}
    table, found = aligned.tables[0], {}
    for name, within in ((CELL_COUNT, None), (_CELL_COUNT_IN_PLATE, "Metadata_Plate")):
        score = scorer(cell_count_profiles(table, count=aligned.count, within=within))
        if score.value is not None:
            found[name] = score.value
    return found


def main_questions(asked: Sequence[Asked]) -> tuple[Asked | None, Asked | None]:
    """The two that the verdict speaks of, and that are drawn against each other.

    The first about biology, and the mixing of what it crosses (else of the finest level): those
    that the design does not put in doubt come first.
    """
    sure = sorted(asked, key=lambda item: item.question.doubt != "")  # stable
    biology = next((item for item in sure if item.question.is_biology), None)
    batch = [item for item in sure if not item.question.is_biology]
    same = [
        item
        for item in batch
        if biology is not None and item.question.level == biology.question.level
    ]
    mixing = [item for item in asked[::-1] if item.question.metric == "same-domain-neighbours"]
    mixing.sort(key=lambda item: item.question.doubt != "")  # stable: the finest level first
    return biology, next(iter([*same, *mixing, *batch]), None)
