"""What a comparison of tables says, in words: a pure function of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evenfield.report.aligned import level_name
from evenfield.report.questions import CELL_COUNT, Answer, Asked, main_questions
from evenfield.report.words import PLURAL, percent

Change = Literal["better", "worse", "unclear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileVerdict:
    """The outcome of a comparison.

    Attributes:
        sentence: One or two plain sentences.
        notes: Caveats that belong to it.
        facts: The large numbers: text, value, tone.
        before: The table before correction.
        best: The table after correction that it speaks of.
        biology: The question about what is kept, if there is one.
        batch: The question about mixing, if there is one.
    """

    sentence: str
    notes: tuple[str, ...]
    facts: tuple[dict[str, str], ...]
    before: str
    best: str
    biology: Asked | None
    batch: Asked | None


def change(asked: Asked, answer: Answer) -> Change:
    """Whether a table is better than the first, as far as its paired interval tells."""
    gain = answer.gain
    if gain is None or gain.low is None or gain.high is None or gain.low <= 0 <= gain.high:
        return "unclear"
    return "better" if (gain.low > 0) == asked.question.higher else "worse"


def best_table(names: Sequence[str], biology: Asked | None, batch: Asked | None) -> str:
    """The table after correction that loses no biology, mixes not worse, and has most biology.

    In this order; without biology the one that mixes best. Ties go to the one that was named first.
    """

    def key(name: str) -> tuple[bool, bool, float]:
        lost = biology is not None and change(biology, biology.of(name)) == "worse"
        stuck = batch is not None and change(batch, batch.of(name)) == "worse"
        if biology is not None:
            return lost, stuck, -biology.of(name).value
        if batch is None:
            return lost, stuck, 0.0
        value = batch.of(name).value
        return lost, stuck, -value if batch.question.higher else value

    return min(names[1:], key=key)


def profile_verdict(names: Sequence[str], asked: Sequence[Asked]) -> ProfileVerdict:
    """What the answers say about the best table.

    Args:
        names: The tables, the one before correction first.
        asked: All questions that could be answered.
    """
    biology, batch = main_questions(asked)
    best = best_table(names, biology, batch)
    return ProfileVerdict(
        sentence=_sentence(best, biology, batch, len(names) - 1),
        notes=tuple(_notes(names, best, asked, biology)),
        facts=tuple(_facts(best, biology, batch)),
        before=names[0],
        best=best,
        biology=biology,
        batch=batch,
    )


def _sentence(best: str, biology: Asked | None, batch: Asked | None, num: int) -> str:
    if biology is None and batch is None:
        return (
            "Neither biology nor mixing can be judged on these wells: there are too few plates, "
            "replicates or controls. The caveats say what is missing."
        )
    kept = None if biology is None else change(biology, biology.of(best))
    mixed = None if batch is None else change(batch, batch.of(best))
    return _opening(best, biology, kept, batch, mixed, num)


def _opening(
    best: str,
    biology: Asked | None,
    kept: Change | None,
    batch: Asked | None,
    mixed: Change | None,
    num: int,
) -> str:
    unit = level_name(batch.question.level) if batch is not None else "plate"
    units = PLURAL.get(unit, unit + "s")
    if biology is None:
        said = {
            "better": f"{best} mixes {units} better, but nothing here can show whether it keeps "
            "the biology: noise mixes perfectly.",
            "worse": f"Do not use {best}: it mixes {units} worse.",
            "unclear": f"{best} does not clearly mix {units} better.",
        }
        return said[mixed or "unclear"]
    finds = _finds(biology)
    if kept == "worse":
        also = f" It does mix {units} better." if mixed == "better" else ""
        if num > 1:
            also = f" It does mix {units} better." if mixed == "better" else ""
            return (
                f"None of the {num} corrections keeps the biology: even after {best} {finds} less "
                f"often than before.{also}"
            )
        return f"Do not use {best} as it is: {finds} less often than before correction.{also}"
    if kept == "better":
        tail = {
            "better": f"{finds} more often, and {units} mix better.",
            "worse": f"{finds} more often, although {units} mix worse: look at the plates below.",
            "unclear": f"{finds} more often; {units} mix neither clearly better nor worse.",
        }[mixed or "unclear"]
        return f"{best} helps: {tail}"
    tail = {
        "better": f"mixes {units} better, and whether {finds} more often is not certain.",
        "worse": f"does not clearly help: {units} mix worse, and it is not certain that {finds} "
        "more often.",
        "unclear": f"does not clearly help: neither is it certain that {finds} more often, nor "
        f"that {units} mix better.",
    }[mixed or "unclear"]
    return f"{best} {tail}"


def _finds(biology: Asked) -> str:
    if biology.question.metric == "map-across-domains":
        unit = level_name(biology.question.level)
        return f"replicates on different {PLURAL.get(unit, unit + 's')} find each other"
    if biology.question.metric == "map-replicability":
        return "replicates find each other"
    if biology.question.metric == "map-activity":
        return "wells stand out from their plate's controls"
    return "compounds find others of their kind"


def _short(asked: Asked, value: float) -> str:
    return f"{value:.2f}" if "precision" in asked.question.measure else percent(value)


def _signed(asked: Asked, value: float) -> str:
    if "precision" in asked.question.measure:
        return f"{value:+.2f}"
    return f"{100 * value:+.0f}"


def _facts(best: str, biology: Asked | None, batch: Asked | None) -> list[dict[str, str]]:
    """Before and after of the two main questions, with chance and the interval of the change."""
    facts = []
    for asked in (biology, batch):
        if asked is None:
            continue
        after = asked.of(best)
        sense = "more" if asked.question.higher else "fewer"
        told = [asked.question.name, f"{asked.question.measure}, {sense} is better"]
        if after.score.chance is not None:
            told.append(f"{_short(asked, after.score.chance)} by chance")
        gain = after.gain
        if gain is not None and gain.low is not None and gain.high is not None:
            low, high = _signed(asked, gain.low), _signed(asked, gain.high)
            unit = "" if "precision" in asked.question.measure else " points"
            told.append(f"change {low} to {high}{unit} (95 % interval)")
        facts.append(
            {
                "text": "; ".join(told),
                "value": f"{_short(asked, asked.answers[0].value)} → {_short(asked, after.value)}",
                "tone": {"better": "good", "worse": "bad", "unclear": ""}[change(asked, after)],
            }
        )
    return facts


def _notes(
    names: Sequence[str], best: str, asked: Sequence[Asked], biology: Asked | None
) -> list[str]:
    notes = []
    if len(names) > 2:
        notes.append(
            f"Named is the best of {len(names) - 1} corrections on these same wells (those that "
            "lose biology or mix worse come last): its number is a little optimistic."
        )
    if biology is not None:
        after = biology.of(best)
        counts = biology.baselines.get(CELL_COUNT)
        if counts is not None and after.low is not None and counts >= after.low:
            notes.append(
                f"The number of cells alone reaches {_short(biology, counts)} at “"
                f"{biology.question.name.lower()}”: much of this score may be toxicity."
            )
        if after.gain is not None and after.gain.low is None:
            notes.append("Too few treatments for an interval: three are needed.")
    against = [
        item.question.name.lower()
        for item in asked
        if item.question.is_biology
        and item is not biology
        and change(item, item.of(best)) == "worse"
    ]
    if against:
        notes.append(f"It loses on other questions: {', '.join(against)}.")
    notes.append(
        "A table does not say which wells its correction was fitted on. For an honest number fit "
        "on some plates, apply to others, and compare those."
    )
    return notes
