"""standardise and mad-robustize: by hand, and what happens where there is no scale."""

import numpy as np
import pytest
from corrector_cases import controls_of, fake_profiles, of, with_metadata

from evenfield.correct import CORRECTORS
from evenfield.errors import EvenfieldWarning, InputError

Standardise = CORRECTORS["standardise"]
MADRobustize = CORRECTORS["mad-robustize"]


def center_and_scale(name, x):
    if name == "standardise":
        return x.mean(0), x.std(0)
    middle = np.median(x, axis=0)
    return middle, 1.4826 * np.median(np.abs(x - middle), axis=0)


@pytest.mark.parametrize("reference", ["controls", "all"])
@pytest.mark.parametrize("name", ["standardise", "mad-robustize"])
def test_each_plate_by_its_own_references(name, reference):
    table = fake_profiles(dtype=np.float64)
    out = CORRECTORS[name](reference=reference).fit_transform(table)
    for plate in table.metadata.Metadata_Plate.unique():
        raw, done = of(table, "Metadata_Plate", plate), of(out, "Metadata_Plate", plate)
        seen = controls_of(raw) if reference == "controls" else raw
        middle, spread = center_and_scale(name, seen.features)
        np.testing.assert_allclose(done.features, (raw.features - middle) / spread, rtol=1e-9)


@pytest.mark.parametrize("name", ["standardise", "mad-robustize"])
def test_standardised_controls_stay(name):
    once = CORRECTORS[name]().fit_transform(fake_profiles())
    again = CORRECTORS[name]().fit_transform(once)
    np.testing.assert_allclose(again.features, once.features, atol=1e-5)


@pytest.mark.parametrize("name", ["standardise", "mad-robustize"])
def test_a_new_plate_takes_its_own_controls(name):
    table = fake_profiles()
    corrector = CORRECTORS[name]().fit(of(table, "Metadata_Batch", "b0"))
    whole = CORRECTORS[name]().fit_transform(table)
    np.testing.assert_allclose(corrector.transform(table).features, whole.features, rtol=1e-6)


def test_pooled_scale_is_that_within_plates():
    table = fake_profiles(dtype=np.float64)
    out = Standardise(scale="pooled").fit_transform(table)
    controls = controls_of(table)
    plates = controls.metadata.Metadata_Plate
    residual = np.concatenate(
        [
            (x := of(controls, "Metadata_Plate", plate).features) - x.mean(0)
            for plate in plates.unique()
        ]
    )
    pooled = np.sqrt((residual**2).sum(0) / (len(residual) - plates.nunique()))
    one = of(out, "Metadata_Plate", "b1p0").features
    raw = of(table, "Metadata_Plate", "b1p0")
    expected = (raw.features - controls_of(raw).features.mean(0)) / pooled
    np.testing.assert_allclose(one, expected, rtol=1e-9)


def test_centre_only():
    table = fake_profiles(dtype=np.float64)
    out = Standardise(scale="none").fit_transform(table)
    raw = of(table, "Metadata_Plate", "b2p1")
    expected = raw.features - controls_of(raw).features.mean(0)
    np.testing.assert_allclose(of(out, "Metadata_Plate", "b2p1").features, expected, atol=1e-12)


def test_without_a_domain_all_rows_are_one_and_new_rows_need_no_controls():
    table = fake_profiles(dtype=np.float64)
    corrector = Standardise(domain=None, reference="all").fit(table)
    out = corrector.transform(table)
    np.testing.assert_allclose(out.features.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(out.features.std(0), 1, atol=1e-9)
    assert corrector.unseen == "same"
    np.testing.assert_allclose(corrector.transform(table[:1]).features, out.features[:1])


@pytest.mark.parametrize("name", ["standardise", "mad-robustize"])
def test_a_feature_without_spread_on_one_plate_takes_the_pooled_one(name):
    table = fake_profiles()
    x = table.features.copy()
    flat = (
        (table.metadata.Metadata_Plate == "b1p0")
        & (table.metadata.Metadata_ControlType == "negcon")
    ).to_numpy()
    x[flat, 2] = 1.5
    with pytest.warns(EvenfieldWarning, match=r"1 feature.*1 domain\(s\) \(b1p0\).*f2"):
        out = CORRECTORS[name]().fit_transform(table.with_features(x))
    assert out.names == table.names
    assert np.isfinite(out.features).all()
    assert np.abs(out.features).max() < 100


@pytest.mark.parametrize("name", ["standardise", "mad-robustize"])
def test_a_feature_without_spread_anywhere_is_left_out_by_name(name):
    table = fake_profiles()
    x = table.features.copy()
    x[(table.metadata.Metadata_ControlType == "negcon").to_numpy(), 4] = 7.1
    with pytest.warns(EvenfieldWarning, match="left out: f4"):
        out = CORRECTORS[name]().fit_transform(table.with_features(x))
    assert out.names == ("f0", "f1", "f2", "f3", "f5")


def test_one_control_a_plate_gives_a_centre_but_no_scale():
    table = fake_profiles(controls=1)
    with pytest.raises(InputError, match=r"no feature varies .*6 rows in 6 domains") as caught:
        Standardise().fit(table)
    assert "scale='none'" in caught.value.fix
    centred = Standardise(scale="none").fit_transform(table)
    np.testing.assert_array_equal(controls_of(centred).features, 0)


def test_plates_without_controls_are_named():
    table = fake_profiles()
    words = table.metadata.Metadata_ControlType.where(
        table.metadata.Metadata_Plate != "b2p0", "trt"
    )
    with pytest.raises(InputError, match=r"1 domain\(s\) \(b2p0\) have no negative control"):
        Standardise().fit(with_metadata(table, Metadata_ControlType=words))


def test_other_words_for_controls_are_understood():
    table = fake_profiles()
    words = table.metadata.Metadata_ControlType.map({"negcon": "negative_control", "trt": "trt"})
    told = with_metadata(table, Metadata_ControlType=words)
    np.testing.assert_array_equal(
        Standardise().fit_transform(told).features, Standardise().fit_transform(table).features
    )


def test_numbers_as_plate_names_are_names():
    table = fake_profiles()
    codes = table.metadata.Metadata_Plate.astype("category").cat.codes
    out = Standardise().fit(with_metadata(table, Metadata_Plate=codes))
    later = with_metadata(table, Metadata_Plate=codes.astype(str))
    np.testing.assert_array_equal(
        out.transform(later).features, Standardise().fit_transform(table).features
    )
