"""Which correction helps the mechanisms of BBBC021, and would one have known? (NSC, NSCB)

    python benchmarks/bbbc021_profiles.py FOLDER            # with bbbc021_wells.parquet in it
    python benchmarks/bbbc021_profiles.py --tables          # from the committed records

632 wells, 103 treatments (38 compounds, 12 mechanisms) and 330 DMSO wells on 55 plates of 10 weeks;
516 CellProfiler features (Ljosa et al. 2013). The week is the batch. About 10 minutes of one core.

whole table     Corrections fitted on all wells, NSC and NSCB of all treatments.
chosen          The weeks are halved. On one half alone (fitted on it, queries and neighbours of it)
                the best of a grid of pipelines is chosen by NSCB (ties: by NSC, then the earlier in
                the grid, which begins with the simplest). It is judged on the treatments of the
                other half against neighbours of all weeks; both halves are swapped, so that every
                treatment is judged once by a pipeline that was chosen and fitted without its week.
halves          By design alone, before any feature is looked at: of the 126 ways to halve ten weeks
                the one whose poorer half has most treatments with a mate (another compound of the
                mechanism, in another week of the half), then the one with the most in both.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from profile_corrections import (
    RECORDS,
    Corrected,
    Steps,
    Z,
    among,
    baselines,
    by_plate,
    correction_of,
    housed,
    interval_text,
    keep,
    percent,
    print_table,
    record,
    rule,
    span,
    value,
    wanted,
)

from evenfield.metrics.base import Score, evaluate_profiles
from evenfield.metrics.bootstrap import interval, score_interval
from evenfield.metrics.kernels.view import Columns
from evenfield.records import Record, file_sha256, read
from evenfield.types import Profiles

FOLDER = RECORDS / "bbbc021-profiles"
WEEK, TREATMENT, COMPOUND = "Metadata_Batch", "Metadata_Treatment", "Metadata_Compound"
CROWDING = "Cells_Neighbors_NumberOfNeighbors_10"
CENTRE, SELECT = by_plate("none"), rule("select-features")
ASKED, JUDGED = "whole table", "held-out weeks"

WHOLE: dict[str, Steps] = {
    "none (raw)": (),
    "z-score": (Z,),
    "z-score by plate": (by_plate("domain"),),
    "centred by plate, z-score": (Z, CENTRE),
    "z-score by plate, pooled": (by_plate("pooled"),),
    "MAD by plate": (by_plate("domain", "mad-robustize"),),
    "MAD by plate, pooled": (by_plate("pooled", "mad-robustize"),),
    "MAD, normal scores, selection": (
        by_plate("domain", "mad-robustize"), rule("inverse-normal"), SELECT),
    "z-score, selection": (Z, SELECT),
    "z-score, normal scores": (Z, rule("inverse-normal")),
    "sphering": (Z, rule("sphering")),
    "sphering, epsilon 1": (Z, rule("sphering", epsilon=1.0)),
    "centred, sphering": (Z, CENTRE, rule("sphering")),
    "TVN": (Z, rule("tvn", WEEK)),
    "centred, TVN": (Z, CENTRE, rule("tvn", WEEK)),
    "CORAL": (Z, rule("coral", WEEK)),
    "ComBat on controls": (Z, rule("combat", WEEK, reference="controls")),
    "ComBat on all wells": (Z, rule("combat", WEEK)),
    "Harmony": (Z, rule("harmony", WEEK)),
    "centred, Harmony": (Z, CENTRE, rule("harmony", WEEK)),
}  # fmt: skip


def grid() -> dict[str, Steps]:
    """Every pipeline that may be chosen, the simplest first."""
    scaled: dict[str, Steps] = {
        "z-score": (Z,),
        "centred by plate, z-score": (Z, CENTRE),
        "z-score by plate, pooled": (by_plate("pooled"),),
        "z-score by plate": (by_plate("domain"),),
        "MAD by plate, pooled": (by_plate("pooled", "mad-robustize"),),
    }
    shaped: dict[str, Steps] = {
        "": (),
        "selection": (SELECT,),
        "normal scores": (rule("inverse-normal"),),
    }
    last: dict[str, Steps] = {
        "": (),
        **{f"sphering, epsilon {e:g}": (rule("sphering", epsilon=e),) for e in (0.01, 0.1, 1, 10)},
        "TVN": (rule("tvn", WEEK),),
        "CORAL": (rule("coral", WEEK),),
        "ComBat on controls": (rule("combat", WEEK, reference="controls"),),
        "Harmony": (rule("harmony", WEEK),),
    }
    parts = itertools.product(last.items(), shaped.items(), scaled.items())
    return {
        ", ".join(filter(None, (a[0], b[0], c[0]))): a[1] + b[1] + c[1]
        for c, b, a in parts
    }  # fmt: skip


def read_wells(folder: Path) -> Profiles:
    """The wells with labels, treatments and control types as the house names them."""
    frame = pd.read_parquet(folder / "bbbc021_wells.parquet")
    control = frame["Metadata_Control"].to_numpy(bool)
    dose = frame["Metadata_Concentration"].astype(str)
    return housed(
        frame,
        Metadata_Label=frame["Metadata_MoA"].where(~control, ""),
        Metadata_Treatment=frame["Metadata_Compound"] + "@" + dose,
        Metadata_ControlType=pd.Series(np.where(control, "negcon", "trt")),
    )


@dataclass(frozen=True, slots=True)
class Halves:
    """Two sets of weeks, and how many treatments of each have a mate within their half."""

    weeks: tuple[frozenset[str], frozenset[str]]
    mates: tuple[int, int]


def halves(metadata: pd.DataFrame) -> Halves:
    """The most balanced halving by design: labels, compounds and weeks, never features."""
    treated = metadata[metadata["Metadata_Label"] != ""].drop_duplicates(TREATMENT)
    weeks = sorted(treated[WEEK].unique())
    rows = list(treated[[WEEK, COMPOUND, "Metadata_Label"]].itertuples(index=False, name=None))

    def mates(half: frozenset[str]) -> int:
        inside = [row for row in rows if row[0] in half]
        return sum(
            any(w != v and c != d and m == k for v, d, k in inside) for w, c, m in inside
        )  # fmt: skip

    best: tuple[tuple[int, int], Halves] | None = None
    for others in itertools.combinations(weeks[1:], (len(weeks) - 1) // 2):
        first = frozenset({weeks[0], *others})
        pair = (first, frozenset(weeks) - first)
        found = (mates(pair[0]), mates(pair[1]))
        rank = (min(found), sum(found))
        if best is None or rank > best[0]:
            best = rank, Halves(pair, found)
    assert best is not None
    return best[1]


def scores(table: Profiles) -> dict[str, Score]:
    return evaluate_profiles(table, ["nsc", "nscb"], Columns())


def choose(
    corrected: Corrected, seen: np.ndarray, pipelines: dict[str, Steps]
) -> list[tuple[str, int]]:
    """Pipelines with their right answers in NSCB, best first, from the wells that may be seen.

    Args:
        corrected: All wells, corrections fitted on those that may be seen (a well that was fitted
            on gets the same numbers whatever else is in the table).
        seen: (n,) wells of the training weeks: fitted on, queries and neighbours alike.
        pipelines: What may be chosen.
    """
    right = []
    for number, (name, steps) in enumerate(pipelines.items()):
        found = scores(corrected(steps)[seen])
        counts = [round(float(found[m].items["score"].sum()), 6) for m in ("nscb", "nsc")]
        right.append((-counts[0], -counts[1], number, name))
    return [(name, int(-nscb)) for nscb, _, _, name in sorted(right)]


def whole_table(table: Profiles, screen: str) -> list[Record]:
    corrected = Corrected(table)
    made = [(name, steps, corrected(steps)) for name, steps in WHOLE.items()]
    made += [(name, None, features) for name, features in baselines(table, CROWDING).items()]
    return [
        record(score, steps, name, by=(TREATMENT, COMPOUND), protocol=ASKED, screen=screen,
               extra={"right": round(float(score.items["score"].sum()), 6)})
        for name, steps, features in made
        for score in scores(features).values()
    ]  # fmt: skip


def held_out_weeks(table: Profiles, screen: str) -> list[Record]:
    pipelines, split = grid(), halves(table.metadata)
    named = ["none (raw)", "z-score", "z-score by plate", "centred by plate, z-score",
             "MAD by plate", "MAD by plate, pooled", "sphering", "centred, sphering", "TVN",
             "centred, TVN", "CORAL", "ComBat on controls", "ComBat on all wells", "Harmony",
             "centred, Harmony"]  # fmt: skip
    week = table.metadata[WEEK].to_numpy()
    parts: dict[tuple[str, str], list[pd.DataFrame]] = {}
    steps_of: dict[str, Steps] = {name: WHOLE[name] for name in named}
    records: list[Record] = []
    for seen, mates in zip(split.weeks, split.mates, strict=True):
        fold = "fitted on " + ", ".join(sorted(seen, key=lambda name: int(name[4:])))
        train = np.isin(week, sorted(seen))
        corrected = Corrected(table, train)
        ranking = choose(corrected, train, pipelines)
        right: dict[str, float] = {}
        for name, steps in {**steps_of, **pipelines}.items():
            is_chosen, is_named = name == ranking[0][0], name in steps_of
            for metric, score in scores(corrected(steps)).items():
                part = among(score, ~np.isin(score.items[WEEK], sorted(seen)))
                if metric == "nscb":
                    right[name] = float(part.items["score"].sum())
                told = [name] * is_named + ["the chosen one"] * is_chosen
                for label in told:
                    parts.setdefault((label, metric), []).append(part.items)
                    records.append(record(
                        part, steps, label, by=(TREATMENT, COMPOUND), protocol=JUDGED, fold=fold,
                        screen=screen, extra={
                            "right": round(float(part.items["score"].sum()), 6),
                            "looked_at": corrected.looked_at(steps)}))  # fmt: skip
        best = max(right[name] for name in pipelines)
        hindsight = next(name for name in pipelines if right[name] == best)
        records.append(value(
            "right in training weeks", ranking[0][1], mates, protocol=JUDGED, fold=fold,
            screen=screen, level="treatment", extra={
                "correction": "the chosen one", "chosen": ranking[0][0],
                "pipelines": len(pipelines),
                "first five": ranking[:5], "held-out right": right[ranking[0][0]],
                "best in hindsight": [hindsight, best]}))  # fmt: skip
    return records + pooled(parts, scores(table), screen)


def pooled(
    parts: dict[tuple[str, str], list[pd.DataFrame]], plain: dict[str, Score], screen: str
) -> list[Record]:
    """Both halves together, and paired differences to the plain z-score."""
    found = []
    for (name, metric), frames in parts.items():
        items = pd.concat(frames, ignore_index=True)
        score = among(replace(plain[metric], items=items), np.ones(len(items), dtype=bool))
        base = pd.concat(parts["z-score", metric]).set_index(TREATMENT)["score"]
        gap = items["score"].to_numpy() - base.loc[items[TREATMENT]].to_numpy()
        asked = replace(score, items=items.assign(score=gap), value=float(gap.mean()))
        single = interval(gap, items[TREATMENT].to_numpy())
        found.append(record(
            score, None, name, by=(TREATMENT, COMPOUND), protocol=JUDGED, fold="both halves",
            screen=screen, extra={
                "right": round(float(items["score"].sum()), 6),
                "gain": float(gap.mean()),
                "gain intervals": {TREATMENT: span(single),
                                   COMPOUND: span(score_interval(asked, COMPOUND))}}))  # fmt: skip
    return found


def tables(items: Sequence[Record]) -> None:
    """Both tables of the docs."""
    head = ["correction", "NSC right of 103", "NSC %", "NSCB right of 103", "NSCB %",
            "of the 92 with a mate %", "interval over treatments", "over compounds"]  # fmt: skip
    rows = []
    for b in wanted(items, protocol=ASKED, metric="nscb"):
        name = correction_of(b)
        a = next(i for i in wanted(items, protocol=ASKED, metric="nsc") if correction_of(i) == name)
        spans = b.extra["intervals"]
        rows.append([name, f"{a.extra['right']:g}", percent(a.value), f"{b.extra['right']:g}",
                     percent(b.value), percent(b.extra["also"]["reachable"][0]),
                     interval_text(spans, TREATMENT), interval_text(spans, COMPOUND)])  # fmt: skip
    print_table(head, rows)
    print()
    folds = list(dict.fromkeys(i.fold for i in items if i.protocol == JUDGED))
    folds = [fold for fold in folds if fold != "both halves"]
    for item in wanted(items, protocol=JUDGED, metric="right in training weeks"):
        told = item.extra
        print(f"- {item.fold}: chosen of {told['pipelines']}: *{told['chosen']}*, right there "
              f"{item.value:g} of {item.num} with a mate; held-out {told['held-out right']:g}; the "
              f"best in hindsight ({told['best in hindsight'][0]}) "
              f"{told['best in hindsight'][1]:g}")  # fmt: skip
    print()
    head = ["correction", "looks at of held-out weeks", *(f"NSCB, {fold}" for fold in folds),
            "both, of 103", "%", "interval over treatments", "over compounds",
            "gain over z-score", "interval over compounds", "NSC of 103"]  # fmt: skip
    rows = []
    for b in wanted(items, protocol=JUDGED, metric="nscb", fold="both halves"):
        name = correction_of(b)
        halves_of = [next(i for i in wanted(items, protocol=JUDGED, metric="nscb", fold=fold)
                          if correction_of(i) == name) for fold in folds]  # fmt: skip
        a = next(i for i in wanted(items, protocol=JUDGED, metric="nsc", fold="both halves")
                 if correction_of(i) == name)  # fmt: skip
        cells = [f"{h.extra['right']:g} of {h.num} (ceiling {h.extra['also']['reachable'][1]})"
                 for h in halves_of]  # fmt: skip
        spans = b.extra["intervals"]
        looked = " / ".join(dict.fromkeys(str(h.extra["looked_at"]) for h in halves_of))
        rows.append([name, looked, *cells, f"{b.extra['right']:g}", percent(b.value),
                     interval_text(spans, TREATMENT), interval_text(spans, COMPOUND),
                     percent(b.extra["gain"], "+"),
                     interval_text(b.extra["gain intervals"], COMPOUND, "+"),
                     f"{a.extra['right']:g}"])  # fmt: skip
    print_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--tables", action="store_true", help="print the records' tables only")
    given = parser.parse_args()
    if given.folder and not given.tables:
        table = read_wells(given.folder)
        screen = file_sha256(given.folder / "bbbc021_wells.parquet")[:16]
        keep(FOLDER, whole_table(table, screen) + held_out_weeks(table, screen), {ASKED, JUDGED})
    tables(read(FOLDER))


if __name__ == "__main__":
    main()
