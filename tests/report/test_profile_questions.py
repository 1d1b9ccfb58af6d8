from dataclasses import replace

import fake_profiles as fake
import numpy as np
import pandas as pd
import pytest

from evenfield.errors import InputError
from evenfield.metrics.base import Score
from evenfield.metrics.bootstrap import Interval
from evenfield.report.aligned import SCALED, align, levels
from evenfield.report.plate_verdicts import plate_verdicts
from evenfield.report.profile_page import table_names
from evenfield.report.profile_verdict import change, profile_verdict
from evenfield.report.questions import Answer, Asked, ask, main_questions, questions
from evenfield.report.wells import from_controls, own_plate, retrieval, values


@pytest.fixture(scope="module")
def asked():
    return ask(align(fake.tables()))[0]


def test_wells_meet_by_name_and_what_is_not_shared_is_told():
    tables = fake.tables()
    tables["clean"] = tables["clean"][::-1][:90]
    found = align(tables)
    assert len(found.metadata) == 90
    assert any("6 of 96 wells of before are not in all tables" in text for _, text in found.notes)
    one = fake.tables()["clean"]
    wells = list(zip(one.metadata["Metadata_Plate"], one.metadata["Metadata_Well"], strict=True))
    row = wells.index(("p2", "C03"))
    place = found.metadata.query("Metadata_Plate == 'p2' and Metadata_Well == 'C03'").index[0]
    assert np.array_equal(found.tables[1].features[place], one.features[row])


def test_tables_that_cannot_be_compared_are_refused():
    tables = fake.tables()
    with pytest.raises(InputError, match="at least one after"):
        align({"before": tables["before"]})
    other = fake.with_columns(tables["clean"], Metadata_Plate="x")
    other = replace(other, metadata=other.metadata.drop_duplicates("Metadata_Well"),
                    features=other.features[:24])  # fmt: skip
    with pytest.raises(InputError, match="no well in common"):
        align({"before": tables["before"], "after": other})
    with pytest.raises(InputError, match="no column Metadata_Nothing"):
        align(tables, columns={"Metadata_Label": "Metadata_Nothing"})
    with pytest.raises(InputError, match="number of cells"):
        align(tables, count="Metadata_Nothing")
    lost = replace(tables["clean"], metadata=tables["clean"].metadata.drop(columns="Metadata_Well"))
    with pytest.raises(InputError, match="no Metadata_Well"):
        align({"before": tables["before"], "after": lost})
    with pytest.raises(InputError, match="two tables have one name"):
        table_names([__import__("pathlib").Path(name) for name in ("a/x.csv", "b/x.parquet")])


def test_images_become_wells_and_missing_values_leave():
    tables = fake.tables()
    one = tables["before"]
    x = np.vstack([one.features - 1, one.features + 1])
    x[3, 2] = np.nan
    sites = pd.concat([one.metadata.assign(Metadata_Site=i) for i in ("1", "2")], ignore_index=True)
    found = align({"sites": replace(one, features=x, metadata=sites), "clean": tables["clean"]})
    told = " ".join(text for _, text in found.notes)
    assert "192 rows of sites were averaged to 96 wells" in told
    assert "1 feature of sites with missing values left out: f2" in told
    assert len(found.tables[0].names) == 7
    whole = align(tables)
    assert np.allclose(found.tables[0].features, np.delete(whole.tables[0].features, 2, axis=1))


def test_units_are_scaled_away_before_a_table_is_judged():
    tables = fake.tables()
    unit = 10.0 ** np.arange(8)
    raw = tables["before"].with_features(tables["before"].features * unit)
    found = align({"before": raw, "clean": tables["clean"]})
    assert found.names == (SCALED, "clean")
    assert np.allclose(found.tables[0].features.std(0), 1)
    assert align(tables).names[0] == "before"


def test_levels_are_those_that_divide_the_wells_differently():
    metadata = align(fake.tables()).metadata
    assert levels(metadata) == ["Metadata_Batch", "Metadata_Plate"]
    alone = metadata.assign(Metadata_Batch=metadata["Metadata_Plate"])
    assert levels(alone) == ["Metadata_Plate"]


def test_the_gain_is_the_mean_of_paired_differences(asked):
    item = next(one for one in asked if one.question.key == "across-batch")
    first, clean = item.answers[0].score.items, item.of("clean").score.items
    key = "Metadata_Treatment"
    difference = clean.set_index(key)["score"] - first.set_index(key)["score"]
    gain = item.of("clean").gain
    assert gain.mean == pytest.approx(difference.mean())
    assert gain.low <= gain.mean <= gain.high
    assert gain.num_units == 6


def test_the_cell_count_stands_beside_every_score(asked):
    assert all(len(item.baselines) == 2 for item in asked)
    aligned = align(fake.tables(), count="Metadata_CellCount")
    assert aligned.count == "Metadata_CellCount"
    bare = {
        name: replace(one, metadata=one.metadata.drop(columns="Metadata_CellCount"))
        for name, one in fake.tables().items()
    }
    without = align(bare)
    assert without.count is None
    assert any("cell-count baseline is missing" in text for _, text in without.notes)


def test_a_design_that_confounds_is_not_what_the_verdict_speaks_of():
    aligned = align(fake.tables(crossed=False))
    doubts = {one.key: one.doubt for one in questions(aligned)}
    assert "most treatments live in one batch" in doubts["across-plate"]
    assert "for a good reason" in doubts["same-batch"]
    found, notes = ask(aligned)
    biology, batch = main_questions(found)
    assert biology.question.key == "replicates"
    assert batch.question.key == "same-plate"
    assert any("“Replicates on other batches” is not asked" in text for _, text in notes)


def _item(metric, gains, *, key="q", doubt=""):
    from evenfield.report.questions import Question

    higher = metric != "same-domain-neighbours"
    question = Question(
        key=key, name=key, asks="?", measure="share", metric=metric, level="Metadata_Plate",
        by="Metadata_Plate", match=(), doubt=doubt,
    )  # fmt: skip
    answers = []
    for place, (name, (low, high)) in enumerate(gains.items()):
        mean = (low + high) / 2
        score = Score(
            metric=metric, value=0.5 + mean, chance=0.1, ceiling=1.0, num=9, unit="well",
            direction="higher" if higher else "lower",
        )  # fmt: skip
        gain = Interval(mean=mean, low=low, high=high, num_units=9) if place else None
        answers.append(Answer(table=name, score=score, low=0.4, high=0.6, gain=gain))
    return Asked(question=question, answers=tuple(answers), baselines={})


@pytest.mark.parametrize(
    ("kept", "mixed", "words"),
    [
        ((0.1, 0.2), (-0.3, -0.1), "a helps: replicates .* more often, and plates mix better"),
        ((0.1, 0.2), (0.1, 0.3), "although plates mix worse"),
        ((0.1, 0.2), (-0.1, 0.3), "neither clearly better nor worse"),
        ((-0.1, 0.2), (-0.3, -0.1), "whether replicates .* more often is not certain"),
        ((-0.1, 0.2), (0.1, 0.3), "does not clearly help: plates mix worse"),
        ((-0.1, 0.2), (-0.1, 0.3), "does not clearly help: neither"),
        ((-0.3, -0.1), (-0.3, -0.1), "Do not use a as it is: .* It does mix plates better"),
    ],
)
def test_the_verdict_has_a_sentence_for_every_outcome(kept, mixed, words):
    same = (0.0, 0.0)
    biology = _item("map-across-domains", {"before": same, "a": kept})
    batch = _item("same-domain-neighbours", {"before": same, "a": mixed})
    found = profile_verdict(["before", "a"], [biology, batch])
    assert pytest.importorskip("re").search(words, found.sentence)
    alone = profile_verdict(["before", "a"], [batch])
    assert alone.biology is None
    assert "noise mixes perfectly" in alone.sentence or mixed != (-0.3, -0.1)
    assert "can be judged" in profile_verdict(["before", "a"], []).sentence


def test_a_table_that_loses_biology_is_never_named_before_one_that_does_not():
    gains = {"before": (0, 0), "lost": (-0.3, -0.1), "stuck": (0.2, 0.3), "good": (0.1, 0.15)}
    biology = _item("map-across-domains", gains)
    batch = _item(
        "same-domain-neighbours",
        {"before": (0, 0), "lost": (-0.4, -0.3), "stuck": (0.1, 0.2), "good": (-0.2, -0.1)},
    )
    found = profile_verdict(list(gains), [biology, batch])
    assert found.best == "good"
    assert change(biology, biology.of("lost")) == "worse"
    lost = {name: gain for name, gain in gains.items() if name in ("before", "lost")}
    worse = _item("map-across-domains", {**lost, "also": (-0.4, -0.3)})
    assert profile_verdict(["before", "lost", "also"], [worse]).sentence.startswith(
        "None of the 2 corrections keeps the biology"
    )


def test_what_a_well_is_told_is_the_formula():
    aligned = align(fake.tables())
    table = aligned.tables[1]
    metadata = table.metadata
    control = (metadata["Metadata_ControlType"] == "negcon").to_numpy()
    centred = table.features.copy()
    for plate in metadata["Metadata_Plate"].unique():
        mine = (metadata["Metadata_Plate"] == plate).to_numpy()
        centred[mine] -= np.median(table.features[mine & control], axis=0)
    spread = 1.4826 * np.median(np.abs(centred[control]), axis=0)
    assert np.allclose(from_controls(table), np.sqrt(((centred / spread) ** 2).mean(1)))
    unit = table.features / np.linalg.norm(table.features, axis=1, keepdims=True)
    near = unit[~control] @ unit[~control].T
    np.fill_diagonal(near, -2)
    plate = metadata.loc[~control, "Metadata_Plate"].to_numpy()
    nearest = np.argsort(-near, axis=1)[:, :10]
    share = (plate[nearest] == plate[:, None]).mean(1)
    assert np.allclose(own_plate(table)[~control], share)
    assert np.isnan(own_plate(table)[control]).all()
    found = retrieval(table)
    assert np.isfinite(found[~control]).all()
    assert found[~control].mean() > np.nanmean(retrieval(aligned.tables[2]))


def test_plates_are_told_what_to_do():
    aligned = align(fake.tables())
    shown = ("before", "clean")
    found = {one.plate: one for one in plate_verdicts(aligned, shown, values(aligned, shown, ()))}
    assert found["p4"].tone == "look"
    assert found["p4"].does == "Check seeding and segmentation"
    assert "times the cells of the other plates" in found["p4"].why[0]
    assert found["p1"].tone == "use"
    assert next(iter(found)) == "p4"  # the worst first
    sticky = {
        one.plate: one
        for one in plate_verdicts(aligned, ("clean", "before"), values(aligned, shown[::-1], ()))
    }
    assert any("nearest are its own" in why for why in sticky["p1"].why)
    few = aligned.metadata["Metadata_ControlType"].where(
        aligned.metadata["Metadata_Plate"] != "p2", "trt"
    )
    without = [fake.with_columns(one, Metadata_ControlType=few) for one in aligned.tables]
    bare = replace(aligned, tables=tuple(without))
    told = {one.plate: one for one in plate_verdicts(bare, shown, values(bare, shown, ()))}
    assert told["p2"].tone in ("few", "look")
    with pytest.raises(InputError, match="no feature or column 'f99'"):
        values(aligned, shown, ("f99",))
