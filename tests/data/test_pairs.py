from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from evenfield.config import RunConfig, SplitConfig, TrainConfig
from evenfield.data.pairs import Others, Pairs, find_partners
from evenfield.data.roles import Roles
from evenfield.data.sampler import Shuffled
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.seeds import numpy_generator
from evenfield.train.setup import prepare_run, sampler_for

ROLES = Roles()


def layout(*, batches=3, plates=2, wells=6, treatments=3, sites=1):
    """A table: batches of plates with the same treatments, at positions that go round."""
    lines = []
    for batch in range(batches):
        for plate in range(plates):
            for well in range(wells):
                for site in range(sites):
                    lines.append(
                        {
                            "Metadata_Source": "s1",
                            "Metadata_Batch": f"b{batch}",
                            "Metadata_Plate": f"p{batch}{plate}",
                            "Metadata_Well": f"A{(well + plate) % wells:02d}",
                            "Metadata_Site": str(site),
                            "Metadata_Treatment": f"t{well % treatments}",
                        }
                    )
    return pd.DataFrame(lines)


def brute(key, group, place, pool, row):
    """All partners of a row, by the definition."""
    return [
        other
        for other in pool
        if key[other] == key[row] != -1
        and group[other] != group[row]
        and (place is None or place[other] != place[row])
    ]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.booleans())
def test_partners_are_those_of_the_definition(seed, with_place):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    key, group, place = (rng.integers(low, 4, n) for low in (-1, 0, 0))
    pool = np.flatnonzero(rng.random(n) < 0.8)
    place = place if with_place else None
    others = Others(pool, key, group, place)
    rows = np.arange(n)
    expected = [brute(key, group, place, pool, row) for row in rows]
    assert others.num(rows).tolist() == [len(found) for found in expected]
    able = rows[others.num(rows) > 0]
    for _ in range(5):
        drawn = others.draw(rng, able) if len(able) else able
        assert all(d in expected[row] for row, d in zip(able, drawn, strict=True))


@pytest.mark.parametrize("with_place", [False, True])
def test_the_draw_is_uniform_over_the_pool(with_place):
    table = layout(batches=4, sites=2)
    key = pd.factorize(table["Metadata_Treatment"])[0]
    group = pd.factorize(table["Metadata_Batch"])[0]
    place = pd.factorize(table["Metadata_Well"])[0] if with_place else None
    others = Others(np.arange(len(table)), key, group, place)
    pool = brute(key, group, place, range(len(table)), 5)
    drawn = Counter(others.draw(numpy_generator(0, "test"), np.full(20_000, 5)).tolist())
    assert set(drawn) == set(pool)
    assert chisquare(list(drawn.values())).pvalue > 1e-3


def test_few_partners_among_many_at_the_same_place_are_found_uniformly():
    """999 of 1,002 candidates share the position: the quick draws fail, the list does not."""
    key, group = np.zeros(1003, np.int64), np.r_[0, np.ones(1002, np.int64)]
    place = np.r_[np.zeros(1000, np.int64), 1, 2, 3]
    others = Others(np.arange(1003), key, group, place)
    assert others.num(np.array([0])) == 3
    drawn = Counter(others.draw(numpy_generator(1, "test"), np.zeros(600, np.int64)).tolist())
    assert set(drawn) == {1000, 1001, 1002}
    assert chisquare(list(drawn.values())).pvalue > 1e-3


@pytest.mark.parametrize(
    ("by", "column"),
    [
        ("batch", "Metadata_Batch"),
        ("plate", "Metadata_Plate"),
        ("domain", "Metadata_Batch"),
        ("source", "Metadata_Source"),
    ],
)
def test_pairs_share_the_treatment_and_differ_in_the_unit_always(by, column):
    table = pd.concat([layout(), layout().assign(Metadata_Source="s2")], ignore_index=True)
    rows = np.arange(len(table))
    found = find_partners(table, rows, ROLES, by=by)
    assert found.report.num_without == 0
    sampler = Pairs(Shuffled(rows, size=8, seed=1), found.partners, found.wells, seed=1)
    value = table["Metadata_Source"] + "/" + table[column]
    for step in range(2 * sampler.passes_per_epoch):
        first, second = sampler.rows(step).T
        treatment = table["Metadata_Treatment"].to_numpy()
        assert (treatment[first] == treatment[second]).all()
        units = (table[column] if by in ("domain", "source") else value).to_numpy()
        assert (units[first] != units[second]).all()


def test_anchors_are_those_of_the_sampler_and_every_draw_depends_on_the_step_alone():
    table = layout()
    rows = np.arange(len(table))
    anchors = Shuffled(rows, size=8, seed=1)
    found = find_partners(table, rows, ROLES, by="batch")
    one, two = (Pairs(anchors, found.partners, found.wells, seed=1) for _ in range(2))
    forward = [one.rows(step) for step in range(6)]
    backward = [two.rows(step) for step in reversed(range(6))][::-1]
    for step, (a, b) in enumerate(zip(forward, backward, strict=True)):
        assert np.array_equal(a, b)
        assert np.array_equal(a[:, 0], anchors.rows(step))
    other = Pairs(anchors, found.partners, found.wells, seed=2)
    assert not all(np.array_equal(other.rows(s)[:, 1], forward[s][:, 1]) for s in range(6))


def lonely():
    """Of one batch alone: t9 in one well (2 sites), t8 in two wells, and an unnamed one."""
    table = layout(sites=2)
    t9 = table.iloc[:2].assign(Metadata_Treatment="t9", Metadata_Well="C01")
    t8 = table.iloc[:2].assign(Metadata_Treatment="t8", Metadata_Well=["C02", "C03"])
    none = table.iloc[:1].assign(Metadata_Treatment=None, Metadata_Well="C04")
    return pd.concat([table, t9, t8, none], ignore_index=True), len(table)


def test_what_becomes_of_images_without_a_partner_is_said_and_counted():
    table, n = lonely()
    rows = np.arange(len(table))
    with pytest.warns(EvenfieldWarning, match=r"5 of 77 images .* 2 are paired with another well"):
        found = find_partners(table, rows, ROLES, by="batch")
    report = found.report
    assert (report.num_other_well, report.num_same_image, report.num_dropped) == (2, 3, 0)
    assert report.treatments == ("", "t8", "t9")
    sampler = Pairs(Shuffled(rows, size=len(rows), seed=0), found.partners, found.wells, seed=0)
    partner = dict(sampler.rows(0).tolist())
    assert [partner[row] for row in range(n, n + 5)] == [n, n + 1, n + 3, n + 2, n + 4]
    with pytest.warns(EvenfieldWarning, match="5 are paired with themselves"):
        found = find_partners(table, rows, ROLES, by="batch", fallback="same-image")
    sampler = Pairs(Shuffled(rows, size=len(rows), seed=0), found.partners, found.wells, seed=0)
    partner = dict(sampler.rows(0).tolist())
    assert all(partner[row] == row for row in range(n, n + 5))
    with pytest.warns(EvenfieldWarning, match="5 are left out"):
        found = find_partners(table, rows, ROLES, by="batch", fallback="drop")
    assert found.rows.tolist() == list(range(n))


def test_one_plate_falls_back_or_is_refused():
    table = layout(batches=1, plates=1)
    rows = np.arange(len(table))
    with pytest.warns(EvenfieldWarning, match="6 of 6 images"):
        found = find_partners(table, rows, ROLES, by="plate", fallback="same-image")
    pairs = Pairs(Shuffled(rows, size=6, seed=0), found.partners, None, seed=0).rows(0)
    assert (pairs[:, 0] == pairs[:, 1]).all()
    with pytest.raises(InputError, match="another of its treatment in another plate"):
        find_partners(table, rows, ROLES, by="plate", fallback="drop")
    with pytest.raises(InputError, match="no column 'Metadata_Perturbation'"):
        find_partners(table, rows, Roles(treatment="Metadata_Perturbation"), by="plate")


def test_the_same_position_can_be_forbidden():
    """Plate 0 of every batch has one layout: only plate 1 (shifted) may be a partner then."""
    table = layout(treatments=6)
    rows = np.arange(len(table))
    found = find_partners(table, rows, ROLES, by="batch", other_position=True)
    drawn = found.partners.draw(numpy_generator(0, "test"), np.repeat(rows, 20))
    well = table["Metadata_Well"].to_numpy()
    assert (well[drawn] != well[np.repeat(rows, 20)]).all()
    fixed = table.assign(Metadata_Well="A01")
    with pytest.warns(EvenfieldWarning, match="36 of 36 images"):
        find_partners(fixed, rows, ROLES, by="batch", other_position=True)


def config(**train):
    return RunConfig(
        method="cdcl",
        options={"num_outputs": 16, "hidden": 8, "bottleneck": 8},
        split=SplitConfig(test=("b04",), validation=("b03",)),
        train=TrainConfig(num_perturbed=12, accumulate=1, **train),
    )


def test_a_run_draws_partners_among_its_training_rows(tiny):
    setup = prepare_run(tiny, config(), tiny.roles)
    sampler = sampler_for(setup, config().train)
    assert isinstance(sampler, Pairs)
    train = set(setup.split.train.tolist())
    treatment = tiny.manifest["Metadata_Treatment"].to_numpy()
    for step in range(sampler.passes_per_epoch):
        first, second = sampler.rows(step).T
        assert {*first.tolist(), *second.tolist()} <= train
        assert (treatment[first] == treatment[second]).all()
        assert (setup.coded.domain[first] != setup.coded.domain[second]).all()
    shares = setup.method.share
    codes, count = np.unique(setup.coded.domain[setup.rows], return_counts=True)
    assert shares[codes].tolist() == pytest.approx((count / len(setup.rows)).tolist())
    assert shares.sum().item() == pytest.approx(1)


def test_pairs_follow_the_method_unless_told(tiny):
    for method, pairs, kind in [
        ("cdcl", "auto", Pairs),
        ("cdcl", "none", Shuffled),
        ("dino", "auto", Shuffled),
        ("dino", "plate", Pairs),
    ]:
        given = config(pairs=pairs)
        setup = prepare_run(tiny, replace(given, method=method), tiny.roles)
        assert type(sampler_for(setup, given.train)) is kind
    given = replace(config(pairs="plate"), method="erm", options={})
    with pytest.raises(InputError, match="erm takes no pairs"):
        sampler_for(prepare_run(tiny, given, tiny.roles), given.train)


def test_unlabelled_images_of_training_units_may_take_part(tiny):
    plain = prepare_run(tiny, config(), tiny.roles)
    more = prepare_run(tiny, config(unlabelled="all"), tiny.roles)
    assert np.array_equal(plain.rows, plain.split.train)
    extra = np.setdiff1d(more.rows, plain.rows)
    assert len(extra)
    assert more.coded.is_control[extra].all()  # the tiny screen has a label in every other well
    assert set(more.coded.domain[extra]) == set(plain.coded.domain[plain.rows])
    given = replace(config(unlabelled="all"), method="erm", options={})
    with pytest.raises(InputError, match="learns from labels"):
        prepare_run(tiny, given, tiny.roles)
