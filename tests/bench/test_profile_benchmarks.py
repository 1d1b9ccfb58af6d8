"""The benchmarks of real profile tables: what is held out is not seen, and docs are the records."""

import contextlib
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenfield.correct import PipelineConfig, Step, fit_pipeline
from evenfield.metrics.base import Score
from evenfield.records import read
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import bbbc021_profiles as weeks
import cpjump1_profiles as plates
import profile_corrections as shared

ROOT = Path(__file__).parents[2]
SMALL = {"z-score": (shared.Z,), "centred": (shared.Z, weeks.CENTRE)}


@pytest.fixture(scope="module")
def table():
    """Six weeks of two plates, 4 mechanisms of 6 compounds (one week each), 3 controls a plate."""
    rng = numpy_generator(0, "profile-benchmarks")
    rows = []
    for number in range(24):
        week = number % 6
        for plate in (2 * week, 2 * week + 1):
            rows.append((f"Week{week}", f"P{plate}", f"c{number}", f"m{number // 6}", "trt"))
    for plate in range(12):
        rows += [(f"Week{plate // 2}", f"P{plate}", "DMSO", "", "negcon")] * 3
    frame = pd.DataFrame(
        rows, columns=["Metadata_Batch", "Metadata_Plate", "Metadata_Compound", "Metadata_Label",
                       "Metadata_ControlType"])  # fmt: skip
    frame["Metadata_Well"] = [
        f"{'ABCDEFGH'[i // 12 % 8]}{i % 12 + 1:02d}" for i in range(len(frame))
    ]
    frame["Metadata_Treatment"] = frame["Metadata_Compound"] + "@1"
    code = frame["Metadata_Label"].astype("category").cat.codes.to_numpy()
    week = frame["Metadata_Batch"].astype("category").cat.codes.to_numpy()
    x = rng.normal(size=(len(frame), 12))
    x += 2 * rng.normal(size=(5, 12))[code] + rng.normal(size=(6, 12))[week]
    names = (*(f"f{i}" for i in range(11)), weeks.CROWDING)
    return Profiles(features=x, names=names, metadata=frame)


@pytest.fixture(scope="module")
def judged(table):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weeks, "grid", lambda: SMALL)
        patch.setattr(weeks, "WHOLE", dict.fromkeys(weeks.WHOLE, (shared.Z,)))
        yield weeks.held_out_weeks(table, "screen")


def test_halves_follow_from_the_design_alone(table):
    found = weeks.halves(table.metadata)
    first, second = found.weeks
    assert not first & second
    assert len(first) == len(second) == 3
    # Every mechanism has a compound in every week, so that all treatments have mates.
    assert found.mates == (12, 12)
    mixed = table.metadata.sample(frac=1, random_state=0).reset_index(drop=True)
    assert weeks.halves(mixed) == found
    lone = table.metadata.assign(Metadata_Label=table.metadata["Metadata_Compound"])
    assert weeks.halves(lone).mates == (0, 0)


def test_corrections_are_fitted_on_what_may_be_seen(table):
    seen = (table.metadata["Metadata_Batch"] < "Week3").to_numpy()
    steps = (shared.Z, Step(corrector="combat"), Step(corrector="sphering"))
    corrected = shared.Corrected(table, seen)
    fitted = fit_pipeline(table[seen], PipelineConfig(steps=steps))
    np.testing.assert_allclose(corrected(steps).features, fitted.transform(table).features)
    assert corrected.looked_at(steps) == fitted.unseen == "rows"
    assert corrected.looked_at((shared.Z,)) == "same"
    assert corrected(()) is table
    assert corrected.looked_at(()) == "-"


def test_a_pipeline_is_chosen_without_the_weeks_that_judge_it(table, judged):
    folds = {r.fold: r for r in judged if r.metric == "right in training weeks"}
    assert len(folds) == 2
    for fold, record in folds.items():
        hidden = np.array([week not in fold for week in table.metadata["Metadata_Batch"]])
        noise = table.features.copy()
        noise[hidden] = numpy_generator(1, "noise").normal(size=(hidden.sum(), noise.shape[1]))
        corrected = shared.Corrected(table.with_features(noise), ~hidden)
        again = weeks.choose(corrected, ~hidden, SMALL)
        assert [list(pair) for pair in again] == [list(p) for p in record.extra["first five"]]
        assert record.value == again[0][1] <= record.num


def test_every_treatment_is_judged_once_against_all_weeks(judged):
    both = [r for r in judged if r.fold == "both halves" and r.metric == "nscb"]
    assert both
    for record in both:
        name = record.extra["correction"]
        halves = [r for r in judged if r.metric == "nscb" and r.fold.startswith("fitted")
                  and r.extra["correction"] == name]  # fmt: skip
        assert [r.num for r in halves] == [12, 12]
        assert record.num == 24
        assert record.extra["right"] == sum(r.extra["right"] for r in halves)
        assert record.extra["ceiling"] == 1
        assert record.extra["chance"] == 6 / 24
        low, high, units = record.extra["intervals"]["Metadata_Compound"]
        assert low <= record.value <= high
        assert units == 24
    gain = {r.extra["correction"]: r.extra["gain"] for r in both}
    assert gain["z-score"] == 0


def test_among_counts_only_those_that_ask():
    items = pd.DataFrame(
        {"score": [1.0, 0.0, 1.0], "reachable": [True, False, True],
         "Metadata_Label": ["a", "b", "b"]})  # fmt: skip
    score = Score(metric="nscb", value=2 / 3, chance=2 / 3, ceiling=2 / 3, num=3, unit="treatment",
                  items=items)  # fmt: skip
    found = shared.among(score, np.array([True, True, False]))
    assert (found.value, found.num, found.chance, found.ceiling) == (0.5, 2, 0.5, 0.5)
    assert found.also["reachable"] == (1.0, 1)


def test_baselines_know_one_feature_or_none(table):
    found = shared.baselines(table, weeks.CROWDING)
    value = table.features[:, -1]
    again = shared.baselines(
        table.with_features(np.c_[np.zeros((len(table), 11)), np.exp(value)]), weeks.CROWDING
    )
    for name in found:  # ranks of one feature; noise
        np.testing.assert_allclose(found[name].features, again[name].features)
        assert found[name].metadata.equals(table.metadata)


def test_a_plate_is_judged_by_what_six_others_taught(table, monkeypatch):
    monkeypatch.setattr(
        plates,
        "CORRECTIONS",
        {"none (as published)": (), "ComBat": (shared.rule("combat", plates.PLATE),)},
    )
    meta = table.metadata.assign(Metadata_Time="48 h")
    meta["Metadata_Compound"] = meta["Metadata_Label"].where(meta["Metadata_Label"] != "", "DMSO")
    renamed = replace(table, metadata=meta)
    none, combat, chosen = plates.held_out(renamed, "screen")
    assert none.extra["gain"] == 0
    assert combat.extra["gain"] > 0  # the simulated effect is a shift
    assert set(combat.extra["by plate"]) == {f"P{i}" for i in range(12)}
    assert combat.extra["looked_at"] == "rows"
    assert set(chosen.extra["chosen"]) == set(combat.extra["by plate"])
    assert none.num == sum(len(set(g[g != "DMSO"])) for _, g in
                           meta.groupby("Metadata_Plate")["Metadata_Compound"])  # fmt: skip


def test_only_compounds_with_two_wells_ask_within_a_plate(table):
    meta = table.metadata.assign(Metadata_Time="48 h")
    twice = meta["Metadata_Compound"].replace({"c0": "two", "c6": "two"})  # both of Week0
    found = plates.asked(
        replace(table, metadata=meta.assign(Metadata_Compound=twice)), plates.WITHIN
    )
    known = found[found["average_precision"].notna()]
    assert set(known["Metadata_Compound"]) == {"two"}
    assert len(known) == 4
    assert (known["n_total_pairs"] == 3).all()  # its mate, and the two other wells of the plate


DOCS = " ".join((ROOT / "docs" / "results-profiles.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("bench", [weeks, plates], ids=["bbbc021", "cpjump1"])
def test_the_page_holds_the_tables_of_the_records(bench):
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        bench.tables(read(bench.FOLDER))
    lines = (" ".join(line.split()) for line in told.getvalue().splitlines())
    missing = [line for line in lines if line not in DOCS]
    assert not missing


def test_the_six_counts_of_bbbc021_are_those_known_before():
    counts = {
        (r.extra["correction"], r.metric): r.extra["right"]
        for r in read(weeks.FOLDER)
        if r.protocol == weeks.ASKED
    }
    names = ("z-score", "z-score by plate", "centred by plate, z-score")
    found = [counts[name, metric] for name in names for metric in ("nsc", "nscb")]
    assert found == [91, 66, 79, 63, 86, 63]
