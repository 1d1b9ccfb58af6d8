import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.config import Regime, SplitConfig
from evenfield.data.manifest import Roles
from evenfield.data.split import contexts_for, make_split, units
from evenfield.data.units import PARTS
from evenfield.errors import InputError

BATCHES = tuple(f"b{number}" for number in range(6))
SELECTORS = ("units", "wells", "oracle")


def manifest(num_batches=6, plates=2, classes=3, wells=4, controls=3, sites=2):
    lines = []
    for b in range(num_batches):
        for p in range(plates):
            names = [f"m{c}" for c in range(classes) for _ in range(wells)] + [""] * controls
            for w, label in enumerate(names):
                for s in range(sites):
                    lines.append(
                        {
                            "Metadata_Source": "s1" if b < 3 else "s2",
                            "Metadata_Batch": f"b{b}",
                            "Metadata_Plate": f"b{b}p{p}",
                            "Metadata_Well": f"A{w + 1:02d}",
                            "Metadata_Site": str(s),
                            "Metadata_Label": label,
                            "Metadata_ControlType": "trt" if label else "negcon",
                        }
                    )
    return pd.DataFrame(lines)


def test_parts_share_no_well_and_tests_share_no_batch():
    coded = units(manifest(), Roles())
    split = make_split(coded, SplitConfig(test=("b5",)))
    parts = [split.train, split.validation, split.in_domain, split.test]
    wells = [set(coded.well[part]) for part in parts]
    for i in range(4):
        assert wells[i]
        for j in range(i):
            assert not wells[i] & wells[j]
    assert set(coded.holdout[split.test]) == {"b5"}
    assert "b5" not in set(coded.holdout[np.concatenate(parts[:3])])
    assert len(split.validation_units) == 1
    assert all((coded.label[part] >= 0).all() for part in parts)


def test_in_domain_wells_come_from_every_plate_and_class():
    coded = units(manifest(), Roles())
    split = make_split(coded, SplitConfig(test=("b5",), validation=("b4",)))
    seen = {(coded.context[r], coded.label[r]) for r in split.in_domain}
    assert len(seen) == 4 * 2 * 3


def test_wells_can_select():
    coded = units(manifest(num_batches=3), Roles())
    split = make_split(coded, SplitConfig(test=("b2",), select_on="wells"))
    assert split.validation_units == ()
    assert set(coded.holdout[split.validation]) == {"b0", "b1"}


def test_controls_and_empty_wells_have_no_label_even_if_the_table_gives_one():
    table = manifest()
    table.loc[table["Metadata_ControlType"] == "negcon", "Metadata_Label"] = "DMSO"
    coded = units(table, Roles())
    assert coded.classes == ("m0", "m1", "m2")
    assert (coded.label[coded.is_control] == -1).all()


def test_sources_can_be_left_out():
    coded = units(manifest(), Roles(holdout="Metadata_Source"))
    split = make_split(coded, SplitConfig(test=("s2",)))
    assert set(coded.domain[split.test]) == {3, 4, 5}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SplitConfig(test=("b9",)), "test names 'b9'"),
        (SplitConfig(test=("b1",), validation=("b1",)), "cannot both select and judge"),
        (SplitConfig(test=tuple(f"b{i}" for i in range(6))), "are left to train on"),
        (SplitConfig(test=("b1", "b2", "b3", "b4", "b5")), r"1 domain\(s\) are left"),
        (SplitConfig(validation=tuple(f"b{i}" for i in range(6))), "no image to train on"),
        (SplitConfig(select_on="oracle"), "there are none"),
        (SplitConfig(validation=("b1",), select_on="wells"), "but select_on is 'wells'"),
    ],
)
def test_bad_splits(config, message):
    with pytest.raises(InputError, match=message):
        make_split(units(manifest(), Roles()), config)


def test_one_class_is_refused():
    with pytest.raises(InputError, match=r"hold 1 class\(es\): m0"):
        make_split(units(manifest(classes=1), Roles()), SplitConfig(test=("b5",)))


def test_a_missing_role_names_the_columns():
    with pytest.raises(InputError, match=r"no column 'Metadata_Lab', which plays the role 'label'"):
        units(manifest(), Roles(label="Metadata_Lab"))


def test_excluded_labels_are_unknown():
    coded = units(manifest(), Roles(), exclude=("m1",))
    assert coded.classes == ("m0", "m2")
    with pytest.raises(InputError, match="no label 'x' to leave out"):
        units(manifest(), Roles(), exclude=("x",))


def test_contexts_are_the_same_for_everyone_and_hold_only_their_own_plate():
    coded = units(manifest(wells=20, controls=20), Roles())
    rows = make_split(coded, SplitConfig(test=("b5",))).test
    regime = Regime(alpha=0.1, num_images=8, num_controls=4)
    one, two = (contexts_for(coded, rows, regime, seed=1) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.perturbed, b.perturbed)
        np.testing.assert_array_equal(a.controls, b.controls)
        both = np.concatenate([a.perturbed, a.controls])
        assert len(set(coded.context[both])) == 1
        assert len(a.controls) == 4
        assert coded.is_control[a.controls].all()


def test_a_label_shift_needs_a_number():
    coded = units(manifest(), Roles())
    with pytest.raises(InputError, match="needs a number of images"):
        contexts_for(coded, np.arange(3), Regime(alpha=0.1), seed=0)


def test_an_oracle_selects_on_the_test_images_and_on_nothing_else():
    coded = units(manifest(), Roles())
    split = make_split(coded, SplitConfig(test=("b5",), select_on="oracle"))
    np.testing.assert_array_equal(split.validation, split.test)
    assert split.validation_units == ("b5",)
    assert not set(coded.well[split.train]) & set(coded.well[split.test])
    assert set(coded.holdout[split.train]) == {"b0", "b1", "b2", "b3", "b4"}


def benchmark(**words):
    """Batches b0 to b3 train on site 0, b4 selects, b5 judges; b0 to b3 keep site 1 for judging."""
    given = {"own": "id_test", "val": "val", "test": "test", **words}
    table = manifest()
    of_batch = {f"b{i}": "train" for i in range(4)} | {"b4": given["val"], "b5": given["test"]}
    part = table["Metadata_Batch"].map(of_batch)
    kept = (part == "train") & (table["Metadata_Site"] == "1")
    return table.assign(Metadata_Split=part.where(~kept, given["own"]))


def by_column(table, **settings):
    coded = units(table, Roles(), column="Metadata_Split")
    return coded, make_split(coded, SplitConfig(column="Metadata_Split", **settings))


def test_a_column_splits_as_it_says():
    table = benchmark()
    coded, split = by_column(table)
    labelled = coded.label >= 0
    for rows, word in (
        (split.train, "train"),
        (split.validation, "val"),
        (split.in_domain, "id_test"),
        (split.test, "test"),
    ):
        expected = np.flatnonzero(labelled & (table["Metadata_Split"] == word).to_numpy())
        np.testing.assert_array_equal(rows, expected)
    assert (split.test_units, split.validation_units) == (("b5",), ("b4",))


def test_a_column_selects_on_its_own_units_wells_or_test():
    _, wells = by_column(benchmark(), select_on="wells")
    coded, oracle = by_column(benchmark(), select_on="oracle")
    assert len(wells.in_domain) == 0  # what selects is not judged
    assert set(coded.part[wells.validation]) == {"id_test"}
    np.testing.assert_array_equal(oracle.validation, oracle.test)
    assert set(coded.part[oracle.in_domain]) == {"id_test"}
    both = benchmark()
    some = both["Metadata_Split"] == "id_test"
    both.loc[some & both["Metadata_Well"].isin(["A01", "A02"]), "Metadata_Split"] = "id_val"
    coded, split = by_column(both, select_on="wells")
    assert set(coded.part[split.validation]) == {"id_val"}
    assert set(coded.part[split.in_domain]) == {"id_test"}


def test_a_column_without_validation_keeps_training_domains_for_it():
    coded, split = by_column(benchmark(val=""))
    (unit,) = split.validation_units
    assert unit in {"b0", "b1", "b2", "b3"}
    for rows in (split.train, split.in_domain):
        assert unit not in set(coded.holdout[rows])
    assert set(coded.part[split.validation]) == {"train"}
    _, wells = by_column(benchmark(own="", val=""), select_on="wells")
    assert len(wells.validation)
    assert not set(wells.validation) & set(wells.train)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from([*PARTS, ""]), min_size=6, max_size=6), st.sampled_from(SELECTORS))
def test_parts_of_a_column_are_disjoint(words, select_on):
    table = manifest(classes=2, wells=2, controls=1)
    table["Metadata_Split"] = table["Metadata_Batch"].map(dict(zip(BATCHES, words, strict=True)))
    coded = units(table, Roles(), column="Metadata_Split")
    try:
        split = make_split(coded, SplitConfig(column="Metadata_Split", select_on=select_on))
    except InputError:
        return
    parts = {name: set(getattr(split, name)) for name in ("train", "in_domain", "test")}
    if select_on != "oracle":
        parts["validation"] = set(split.validation)
    assert sum(map(len, parts.values())) == len(set().union(*parts.values()))
    assert set(coded.part[split.train]) == {"train"}
    assert len(split.validation)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"val": "train2"}, {}, "'train2', which is no part"),
        ({}, {"test": ("b5",)}, "test names 'b5', but the column"),
        ({}, {"validation": ("b4",)}, "the column Metadata_Split says who does"),
        ({}, {"validation": ("b4",), "select_on": "wells"}, "but select_on is 'wells'"),
        ({"test": ""}, {"select_on": "oracle"}, "there are none"),
    ],
)
def test_bad_columns(change, settings, message):
    with pytest.raises(InputError, match=message):
        by_column(benchmark(**change), **settings)


def test_a_column_must_not_train_on_a_test_unit():
    table = benchmark()
    table.loc[table.index[-20:-10], "Metadata_Split"] = "train"
    with pytest.raises(InputError, match="images of 'b5' in train and in val or test"):
        by_column(table)
    with pytest.raises(InputError, match="no column 'Nope' to split by"):
        units(table, Roles(), column="Nope")
    with pytest.raises(InputError, match="coded without the column"):
        make_split(units(table, Roles()), SplitConfig(column="Metadata_Split"))
