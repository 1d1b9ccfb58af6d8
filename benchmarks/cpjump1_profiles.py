"""Do correctors help the replicates of CPJUMP1 find each other, also on a plate held out?

    python benchmarks/cpjump1_profiles.py FOLDER [--part corrections|held-out|copairs ...]
    python benchmarks/cpjump1_profiles.py --tables      # from the committed records

Seven compound plates of one experimental batch (U2OS, one platemap: a compound lies in the same
well on every plate), 904 CellProfiler features that are published normalised to each plate's 64
negative controls and selected; 306 compounds, 14 of them in two wells. The plate is the batch. Each
question is a mean average precision over compounds; controls take no part. About 15 minutes of one
core.

corrections     Fitted on all seven plates.
held-out plate  Fitted on six plates and applied to the seventh, seven times. Its wells ask for
                their compound on the six others, among all other compounds of all plates.
                `chosen` is the correction that is best across the six fitted plates.
copairs         Average precision of copairs (needs 0.5.5) and ours, and what makes p-values differ.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from profile_corrections import (
    RECORDS,
    Corrected,
    Steps,
    Z,
    baselines,
    by_plate,
    correction_of,
    housed,
    keep,
    print_table,
    rule,
    span,
    value,
    wanted,
)

from evenfield.correct import Step
from evenfield.data.names import as_text
from evenfield.metrics.base import PROFILE_METRICS
from evenfield.metrics.bootstrap import interval, paired_interval
from evenfield.metrics.kernels.view import Columns
from evenfield.metrics.map import Question, average_precision, mean_average_precision
from evenfield.records import Record, digest, file_sha256, read
from evenfield.types import Profiles

FOLDER = RECORDS / "cpjump1-profiles"
PLATE, COMPOUND, WELL = "Metadata_Plate", "Metadata_Compound", "Metadata_Well"
TIME, STAIN = "Metadata_Time", "Metadata_Anomaly"
CROWDING = "Cells_Neighbors_PercentTouching_Adjacent"
CHANGES = ("same null, same rule", "own null, same rule", "own null, own rule")
FITTED, HELD, PEER = "corrections", "held-out plate", "copairs"
NEAR = "same-domain-neighbours"
SELECT = rule("select-features")

CORRECTIONS: dict[str, Steps] = {
    "none (as published)": (),
    "z-score": (Z,),
    "z-score by plate, all wells": (
        rule("standardise", PLATE, reference="all"),),
    "z-score by plate, controls": (by_plate("domain"),),
    "MAD by plate, controls": (by_plate("domain", "mad-robustize"),),
    "selection at 0.9": (SELECT,),
    "normal scores": (rule("inverse-normal"),),
    "sphering": (rule("sphering"),),
    "sphering, epsilon 10": (rule("sphering", epsilon=10.0),),
    "sphering, reduced": (rule("sphering", few="reduce"),),
    "TVN": (rule("tvn", PLATE),),
    "TVN without CORAL": (Step(corrector="tvn", options={"domain": None}),),
    "CORAL": (rule("coral", PLATE),),
    "ComBat on controls": (rule("combat", PLATE, reference="controls"),),
    "ComBat on all wells": (rule("combat", PLATE),),
    "Harmony": (rule("harmony", PLATE),),
    "ComBat on all wells, sphering": (rule("combat", PLATE), rule("sphering")),
    "sphering, Harmony": (rule("sphering"), rule("harmony", PLATE, num_components=200)),
}  # fmt: skip

WITHIN = "within plates (14 compounds)"
ACROSS = "across plates"
OTHER_WELL = "across plates, other well (14 compounds)"
TIMES = "across time points"
LATE = "across the plates of 48 h"
STAINS = "across stains, 48 h"
QUESTIONS: dict[str, Question] = {
    WITHIN: Question(
        pos_sameby=(COMPOUND, PLATE), neg_sameby=(PLATE,), neg_diffby=(COMPOUND,)),
    ACROSS: Question(pos_sameby=(COMPOUND,), pos_diffby=(PLATE,), neg_diffby=(COMPOUND,)),
    OTHER_WELL: Question(
        pos_sameby=(COMPOUND,), pos_diffby=(PLATE, WELL), neg_diffby=(COMPOUND,)),
    TIMES: Question(pos_sameby=(COMPOUND,), pos_diffby=(TIME,), neg_diffby=(COMPOUND,)),
    LATE: Question(pos_sameby=(COMPOUND,), pos_diffby=(PLATE,), neg_diffby=(COMPOUND,)),
    STAINS: Question(pos_sameby=(COMPOUND,), pos_diffby=(STAIN,), neg_diffby=(COMPOUND,)),
}  # fmt: skip


def read_plates(folder: Path) -> Profiles:
    """All wells, with time point and stain anomaly from the experiment's table."""
    paths = sorted(folder.glob("BR*.csv.gz"))
    frame = pd.concat([pd.read_csv(path, low_memory=False) for path in paths], ignore_index=True)
    told = pd.read_csv(folder / "experiment-metadata.tsv", sep="\t", dtype=str)
    told = told[told["Batch"] == "2020_11_04_CPJUMP1"].set_index("Assay_Plate_Barcode")
    plate = frame[PLATE].astype(str)
    control = frame["Metadata_control_type"].fillna("trt").to_numpy()
    return housed(
        frame,
        Metadata_Compound=pd.Series(as_text(frame["Metadata_broad_sample"]), dtype=object),
        Metadata_ControlType=pd.Series(np.where(control == "negcon", "negcon", "trt")),
        Metadata_Time=plate.map(told["Time"]) + " h",
        Metadata_Anomaly=plate.map(told["Anomaly"]),
    )


def fingerprint(folder: Path) -> str:
    return digest([file_sha256(path) for path in sorted(folder.glob("BR*.csv.gz"))])


def treated(table: Profiles) -> Profiles:
    return table[(table.metadata["Metadata_ControlType"] == "trt").to_numpy()]


def asked(table: Profiles, name: str) -> pd.DataFrame:
    """Average precision of each treated well's question (float32 does to 1e-4)."""
    wells = treated(table)
    if name in (LATE, STAINS):
        wells = wells[(wells.metadata[TIME] == "48 h").to_numpy()]
    if name == WITHIN:  # a compound with one well on a plate cannot ask; it is a negative
        place = wells.metadata.groupby([COMPOUND, PLATE])[WELL].transform("size")
        queries = (place > 1).to_numpy()
        return average_precision(wells, QUESTIONS[name], queries=queries, precision="single")
    return average_precision(wells, QUESTIONS[name], precision="single")


def corrections(table: Profiles, screen: str) -> list[Record]:
    corrected = Corrected(table)
    made = [(name, corrected(steps)) for name, steps in CORRECTIONS.items()]
    made += list(baselines(table, CROWDING).items())
    records, plain = [], {}
    columns = Columns(domain=PLATE, compound=COMPOUND, treatment=COMPOUND, label=COMPOUND)
    for name, features in made:
        near = PROFILE_METRICS[NEAR](columns=columns)(features)
        for question in QUESTIONS:
            found = mean_average_precision(asked(features, question), [COMPOUND])
            groups = found[COMPOUND].to_numpy(str)
            ap = found["mean_average_precision"].to_numpy()
            base = plain.setdefault(question, ap)
            records.append(value(
                "map", float(ap.mean()), len(found), protocol=FITTED, unit=question, screen=screen,
                level="compound", unit_role="group", extra={
                    "correction": name,
                    "chance": float(found["expected_average_precision"].mean()), "ceiling": 1.0,
                    "share with q < 0.05": float(found["below_corrected_p"].mean()),
                    "intervals": {COMPOUND: span(interval(ap, groups))},
                    "gain": float((ap - base).mean()),
                    "gain intervals": {COMPOUND: span(paired_interval(ap, base, groups))},
                    "fitted_on": "all wells of all plates"}))  # fmt: skip
        records.append(value(
            NEAR, near.value, near.num, protocol=FITTED, level="well",
            screen=screen, extra={"correction": name, "chance": near.chance}))  # fmt: skip
    return records


def held_out(table: Profiles, screen: str) -> list[Record]:
    plate = table.metadata[PLATE].to_numpy(str)
    rows = []
    seen_rule: dict[str, str] = {}
    chosen: dict[str, str] = {}
    for name in sorted(set(plate)):
        corrected = Corrected(table, plate != name)
        inside, mine = {}, []
        for correction, steps in CORRECTIONS.items():
            features = corrected(steps)
            seen_rule[correction] = corrected.looked_at(steps)
            wells = treated(features)
            own = wells.metadata[PLATE].to_numpy(str) == name
            ap = average_precision(wells, QUESTIONS[ACROSS], queries=own, precision="single")[own]
            mine.append(ap.assign(correction=correction))
            fitted = average_precision(wells[~own], QUESTIONS[ACROSS], precision="single")
            inside[correction] = fitted.groupby(COMPOUND)["average_precision"].mean().mean()
        chosen[name] = max(inside, key=lambda key: inside[key])
        every = pd.concat(mine)
        best = every[every["correction"] == chosen[name]]
        rows += [every, best.assign(correction="the chosen one")]
    found = pd.concat(rows).groupby(["correction", PLATE, COMPOUND])["average_precision"].mean()
    plain = found["none (as published)"]
    records = []
    for correction in [*CORRECTIONS, "the chosen one"]:
        ap = found[correction]
        gap = (ap - plain).reset_index()
        here = ap.reset_index()
        by = {
            key: span(interval(here["average_precision"], here[key])) for key in (PLATE, COMPOUND)
        }
        gains = {key: span(interval(gap["average_precision"], gap[key])) for key in by}
        extra = {
            "correction": correction,
            "intervals": by,
            "gain": float(gap["average_precision"].mean()),
            "gain intervals": gains,
            "by plate": {str(k): round(float(v), 6) for k, v in
                         gap.groupby(PLATE)["average_precision"].mean().items()},
            "looked_at": seen_rule.get(correction, "as its rule says"),
        }  # fmt: skip
        if correction == "the chosen one":
            extra["chosen"] = chosen
        records.append(value("map", float(ap.mean()), len(ap), protocol=HELD, unit=ACROSS,
                             level="compound on a plate", unit_role="group", screen=screen,
                             extra=extra))  # fmt: skip
    return records


def peer(table: Profiles, screen: str) -> list[Record]:
    """AP of every query in both packages, and p of every compound under one change at a time."""
    import copairs.map as copairs

    records = []
    for name in (WITHIN, ACROSS, TIMES):
        question = QUESTIONS[name]
        wells = treated(table)
        terms = {key: list(getattr(question, key)) for key in question.__slots__}
        theirs = copairs.average_precision(
            wells.metadata, wells.features, **terms, progress_bar=False)  # fmt: skip
        ours = {p: average_precision(wells, question, precision=p) for p in ("double", "single")}
        known = theirs["average_precision"].notna() & ours["double"]["average_precision"].notna()
        gap = {p: np.abs(t["average_precision"] - theirs["average_precision"])[known]
               for p, t in ours.items()}  # fmt: skip
        ours_at = ours["double"][known]
        with tempfile.TemporaryDirectory() as cache:
            options = {"null_size": 10_000, "threshold": 0.05, "seed": 0}
            them = copairs.mean_average_precision(
                theirs[known], [COMPOUND], **options, progress_bar=False, cache_dir=Path(cache)
            )
            nulls = {}
            for path in Path(cache).rglob("*.npy"):
                total, positives = (int(part[1:]) for part in path.stem.split("_"))
                nulls[positives, total - positives] = np.load(path)
        them = them.sort_values(COMPOUND)["p_value"].to_numpy()
        old = "copairs-0.5.5"
        p = {
            CHANGES[0]: mean_average_precision(
                ours_at, [COMPOUND], **options, rule=old, nulls=nulls),
            CHANGES[1]: mean_average_precision(ours_at, [COMPOUND], **options, rule=old),
            CHANGES[2]: mean_average_precision(ours_at, [COMPOUND], **options),
        }  # fmt: skip
        steps = [them, *(each["p_value"].to_numpy() for each in p.values())]
        change = [float(np.abs(b - a).max()) for a, b in pairwise(steps)]
        records.append(value(
            "largest difference of average precision", float(gap["double"].max()), int(known.sum()),
            protocol=PEER, unit=name, unit_role="group", level="well", screen=screen, extra={
                "copairs": "0.5.5", "single precision": float(gap["single"].max()),
                "queries above 1e-6 in double": int((gap["double"] > 1e-6).sum()),
                "groups": len(them), "null_size": 10_000,
                "p: largest change by": dict(zip(p, change, strict=True)),
                "p: bound of the draws": 4 * float(np.sqrt(0.5 / 10_000)),
                "p below 0.05 (copairs, ours)": [int((them < 0.05).sum()),
                                                int((steps[-1] < 0.05).sum())]}))  # fmt: skip
    return records


PARTS = {FITTED: corrections, HELD: held_out, PEER: peer}


def three(number: float, sign: str = "") -> str:
    return f"{number:{sign}.3f}"


def ends(found: Sequence[float | None], sign: str = "") -> str:
    low, high = found[0], found[1]
    return "–" if low is None or high is None else f"{three(low, sign)} to {three(high, sign)}"


def tables(items: Sequence[Record]) -> None:
    """The tables of the docs."""
    names = list(dict.fromkeys(correction_of(i) for i in wanted(items, protocol=FITTED)))
    told = {(correction_of(i), i.unit): i for i in wanted(items, protocol=FITTED, metric="map")}
    near = {
        correction_of(i): i for i in wanted(items, protocol=FITTED, metric="same-domain-neighbours")
    }
    head = ["correction", *QUESTIONS, "neighbours of the own plate"]
    rows: list[list[object]] = []
    for name in names:
        cells = [three(told[name, q].value) for q in QUESTIONS]
        rows.append([name, *cells, f"{100 * near[name].value:.0f} %"])
    first = next(iter(near))
    rows.append(["*chance*", *(three(told[first, q].extra["chance"]) for q in QUESTIONS),
                 f"{100 * near[first].extra['chance']:.0f} %"])  # fmt: skip
    print_table(head, rows)
    print()
    shown = [WITHIN, ACROSS, OTHER_WELL, TIMES]
    print_table(
        ["correction", *(f"gain {q}" for q in shown), "share with q < 0.05 across plates"],
        [[name, *(f"{three(told[name, q].extra['gain'], '+')} "
                  f"({ends(told[name, q].extra['gain intervals'][COMPOUND], '+')})" for q in shown),
          f"{100 * told[name, ACROSS].extra['share with q < 0.05']:.0f} %"]
         for name in names])  # fmt: skip
    print()
    print_table(
        ["correction", "looks at of the held-out plate", "mAP of the held-out plate",
         "gain over none", "interval over plates", "interval over compounds",
         "plates that gain"],
        [[correction_of(i), i.extra["looked_at"], three(i.value), three(i.extra["gain"], "+"),
          ends(i.extra["gain intervals"][PLATE], "+"),
          ends(i.extra["gain intervals"][COMPOUND], "+"),
          f"{sum(v > 0 for v in i.extra['by plate'].values())} of {len(i.extra['by plate'])}"]
         for i in wanted(items, protocol=HELD)])  # fmt: skip
    print()
    print_table(
        ["question", "queries", "largest difference of AP, float64", "float32",
         "p: rounding", "p: other draws", "p: ties count (>=)", "p < 0.05: copairs, ours"],
        [[i.unit, i.num, f"{i.value:.1e}", f"{i.extra['single precision']:.1e}",
          *(f"{i.extra['p: largest change by'][change]:.4f}" for change in CHANGES),
          ", ".join(map(str, i.extra["p below 0.05 (copairs, ours)"])) + f" of {i.extra['groups']}"]
         for i in wanted(items, protocol=PEER)])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="default: all")
    parser.add_argument("--tables", action="store_true", help="print the records' tables only")
    given = parser.parse_args()
    if given.folder and not given.tables:
        table, screen = read_plates(given.folder), fingerprint(given.folder)
        for part in given.part or PARTS:
            keep(FOLDER, PARTS[part](table, screen), {part})
    tables(read(FOLDER))


if __name__ == "__main__":
    main()
