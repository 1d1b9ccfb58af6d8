import json
from dataclasses import replace

import fake_results as fake
import numpy as np
import pytest

from evenfield.records import ORACLE, TRANSDUCTIVE
from evenfield.report.tables import as_json, as_text, summarise
from evenfield.report.verdict import verdict


def rows_of(skill, **given):
    return summarise(fake.values(skill=skill, **given))


def one(rows, **wanted):
    found = [r for r in rows if all(getattr(r, key) == value for key, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def test_a_row_is_the_mean_over_domains_of_the_mean_over_seeds():
    records = [
        fake.base(metric="accuracy", protocol="new-batch", method="erm", adapter="source", **given)
        for given in (
            {"unit": "a", "unit_role": "domain", "seed": 0, "value": 0.2, "num": 10},
            {"unit": "a", "unit_role": "domain", "seed": 1, "value": 0.4, "num": 10},
            {"unit": "b", "unit_role": "domain", "seed": 0, "value": 0.9, "num": 30},
            {"unit": "p1", "unit_role": "context", "seed": 0, "value": 0.0, "num": 5},
            {"unit": "all", "unit_role": "all", "seed": 0, "value": 0.77, "num": 40},
        )
    ]
    row = one(summarise(records), method="erm")
    assert row.mean == pytest.approx((0.3 + 0.9) / 2)
    assert (row.num_units, row.num_seeds, row.num, row.units) == (2, 1, 40, "domain")
    assert row.low is None
    assert dict(row.by_unit) == pytest.approx({"a": 0.3, "b": 0.9})
    # A repeated run counts once, as last written.
    again = [*records, replace(records[2], value=0.5)]
    assert one(summarise(again), method="erm").mean == pytest.approx(0.4)
    # Without values by domain, folds are the units.
    pooled = [replace(records[4], fold=fold, value=v) for fold, v in (("x", 0.5), ("y", 0.7))]
    row = one(summarise(pooled), method="erm")
    assert (row.mean, row.units, row.num_units) == (pytest.approx(0.6), "fold", 2)


def test_gap_closed_and_gain_compare_with_erm_on_the_same_domains():
    rows = rows_of(fake.SKILL)
    home = one(
        rows, method="erm", adapter="source", protocol="in-domain", metric="nll", level="image"
    )
    erm = one(
        rows, method="erm", adapter="source", protocol="new-batch", metric="nll", level="image"
    )
    for row in rows:
        if (row.protocol, row.metric, row.level) == ("new-batch", "nll", "image") and row != erm:
            share = (row.mean - erm.mean) / (home.mean - erm.mean)
            assert row.gap_closed == pytest.approx(share)
            mine, theirs = np.array(row.by_unit)[:, 1], np.array(erm.by_unit)[:, 1]
            gain = (mine.astype(float) - theirs.astype(float)).mean()
            assert row.gain == pytest.approx(gain)
            assert row.gain_low <= row.gain <= row.gain_high
    assert erm.gap_closed is None
    assert home.gain is None


def test_order_of_records_changes_nothing():
    records = list(fake.values())
    assert summarise(records[::-1]) == summarise(records)


def test_regimes_are_rows_of_their_own():
    rows = summarise([*fake.values(), *fake.regimes()])
    row = one(rows, method="erm", adapter="controls", alpha=0.01, num_images=1, num_controls=8)
    base = one(rows, method="erm", adapter="source", alpha=0.01, num_images=1, num_controls=8)
    assert row.gain == pytest.approx(row.mean - base.mean)
    assert row.gap_closed is not None


def test_as_text_and_as_json():
    rows = rows_of(fake.SKILL)
    text = as_text(rows, width=140)
    assert "cs-arm-bn[controls]" in text
    assert "–" in text
    found = json.loads(as_json(rows))
    assert len(found) == len(rows)
    wanted = {"protocol", "method", "adapter", "metric", "mean", "low", "high", "num_seeds"}
    assert wanted | {"alpha", "num_images", "num_controls"} <= found[0].keys()
    assert json.loads(as_json([])) == []
    assert as_text([])


BEST = {("erm", "source"): (0.97, 0.52), ("cs-arm-bn", "controls"): (0.97, 0.95)}


def test_verdict():
    sentence = verdict(rows_of(BEST)).sentence
    for words in (
        "On batches it has never seen, CS-ARM-BN with the plate's own controls is right for 9",
        "% of images (95 % interval",
        "over 4 unseen batches)",
        "ERM without adaptation falls from 97 % to 50 %",
        "of that loss.",
    ):
        assert words in sentence


def test_verdict_without_enough_domains_gives_no_interval():
    found = verdict(rows_of(BEST, batches=("B4", "B5")))
    assert "2 unseen batches, too few for an interval" in found.sentence
    assert any("no honest interval" in note for note in found.notes)
    assert "1 unseen batch," in verdict(rows_of(BEST, batches=("B4",))).sentence


@pytest.mark.parametrize(
    ("skill", "words"),
    [
        ({("erm", "source"): (0.97, 0.6), ("arm-bn", "batch"): (0.9, 0.4)}, "Nothing that was"),
        ({("erm", "source"): (0.9, 0.96)}, "loses nothing on unseen data"),
        (
            {("erm", "source"): (0.9, 0.96), ("arm-bn", "batch"): (0.9, 0.99)},
            "there is no gap to win back",
        ),
        ({("arm-bn", "batch"): (0.9, 0.8)}, "was not measured, so nothing says"),
        ({("erm", "source"): (0.9, 0.5), ("erm", "union"): (0.9, 0.7)}, "Adaptation wins back"),
        ({("erm", "source"): (0.8, 0.5), ("arm-bn", "batch"): (0.9, 0.99)}, "all of that loss"),
    ],
)
def test_verdict_of_other_outcomes(skill, words):
    assert words in verdict(rows_of(skill)).sentence


def test_verdict_of_too_little():
    assert "say nothing about new plates" in verdict([]).sentence
    new = [row for row in rows_of(BEST) if row.protocol != "in-domain"]
    assert (
        "how much of its loss is won back is unknown"
        in verdict(
            summarise(r for r in fake.values(skill=BEST) if r.protocol != "in-domain")
        ).sentence
    )
    assert verdict(new).at_home is None
    one_seed = verdict(rows_of(BEST, seeds=(0,)))
    assert any("Only 1 training seed" in note for note in one_seed.notes)


def test_verdict_says_when_a_gain_is_not_certain():
    values = {"erm": (0.5, 0.6, 0.7), "arm-bn": (0.45, 0.67, 0.71)}
    records = [
        fake.base(
            metric="accuracy",
            protocol="new-batch",
            method=method,
            adapter="source",
            unit=unit,
            unit_role="domain",
            value=value,
        )
        for method, three in values.items()
        for unit, value in zip("abc", three, strict=True)
    ]
    found = verdict(summarise(records))
    assert any("not certain" in note for note in found.notes)


def test_marked_protocols_are_tracks_of_their_own():
    """A better transductive or oracle row wins nothing over the standard track."""
    plain = [r for r in fake.values() if r.metric == "accuracy"]
    best = {"method": "cs-arm-bn", "adapter": "union"}
    for mark in (TRANSDUCTIVE, ORACLE):
        other = [
            replace(r, **best, protocol=r.protocol + mark, value=1.0)
            for r in plain
            if (r.method, r.adapter) == ("erm", "source")
        ]
        rows = summarise([*other, *plain])
        assert [row.protocol for row in rows][-1] == f"new-batch{mark}"
        for row in rows:
            if mark in row.protocol:
                assert (row.gain, row.gap_closed) == (None, None)
        found = verdict(rows)
        assert found.protocol == "new-batch"
        assert found == verdict(summarise(plain))
        alone = verdict(summarise(other))
        assert alone.protocol == f"new-batch{mark}"
        text = " ".join((alone.sentence, *alone.notes))
        said = {ORACLE: "no honest number", TRANSDUCTIVE: "another track"}
        assert said[mark] in text
        assert "4 unseen batches" in text


def test_a_marked_track_is_compared_within_itself():
    mark = TRANSDUCTIVE
    track = [
        replace(r, protocol=r.protocol + mark) for r in fake.values() if r.metric == "accuracy"
    ]
    plain = [r for r in fake.values() if r.metric == "accuracy"]
    for one, two in zip(summarise(track), summarise(plain), strict=True):
        assert replace(one, protocol=two.protocol) == two


def test_sample_standard_deviation_over_seeds():
    records = [
        fake.base(metric="acc_avg", protocol="new-batch", method="erm", adapter="source",
                  fold="x", seed=seed, value=value, num=10)
        for seed, value in enumerate((0.70, 0.76, 0.61))
    ]  # fmt: skip
    groups = [replace(r, unit="slide20", unit_role="group", value=0.0) for r in records]
    row = one(summarise([*groups, *records]), method="erm")
    assert row.mean == pytest.approx(0.69)
    assert row.seed_sd == pytest.approx(np.std([0.70, 0.76, 0.61], ddof=1))
    assert "± 7.5" in as_text([row])
    assert one(summarise(records[:1]), method="erm").seed_sd is None
