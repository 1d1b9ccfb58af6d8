"""inverse-normal, regress-out and select-features."""

import numpy as np
import pytest
from corrector_cases import controls_of, fake_profiles, of, with_metadata
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from evenfield.correct import CORRECTORS
from evenfield.correct.select_features import correlations
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.seeds import numpy_generator

InverseNormal = CORRECTORS["inverse-normal"]
RegressOut = CORRECTORS["regress-out"]
SelectFeatures = CORRECTORS["select-features"]


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), digits=st.integers(0, 3))
def test_inverse_normal_is_the_formula_with_mean_ranks(seed, digits):
    table = fake_profiles(num_batches=1, plates=1, controls=5, treated=20, seed=seed)
    x = np.round(table.features.astype(float), digits)
    out = InverseNormal().fit_transform(table.with_features(x)).features
    n = len(x)
    expected = norm.ppf((rankdata(x, axis=0) - 0.375) / (n - 0.75 + 1))
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_inverse_normal_depends_on_ranks_only_and_maps_new_values_between():
    table = fake_profiles(dtype=np.float64)
    plain = InverseNormal().fit_transform(table).features
    curved = InverseNormal().fit_transform(table.with_features(np.exp(table.features / 3)))
    np.testing.assert_allclose(curved.features, plain, atol=1e-6)
    one = table.with_features(np.arange(len(table.features) * 6.0).reshape(-1, 6))
    fitted = InverseNormal().fit(one)
    between = fitted.transform(one[:1].with_features(one.features[:1] + 3)).features
    seen = fitted.transform(one).features
    np.testing.assert_allclose(between, (seen[:1] + seen[1:2]) / 2, atol=1e-6)
    beyond = fitted.transform(one[:1].with_features(one.features[:1] - 1e6)).features
    np.testing.assert_array_equal(beyond, seen[:1])


def test_inverse_normal_with_few_knots_is_near():
    table = fake_profiles()
    full = InverseNormal().fit_transform(table).features
    thin = InverseNormal(knots=64).fit_transform(table).features
    assert 0 < np.abs(thin - full).max() < 0.1
    np.testing.assert_array_equal(thin.argmax(0), full.argmax(0))


def test_regress_out_is_least_squares_on_controls_with_an_intercept_a_plate():
    table = fake_profiles(dtype=np.float64)
    controls = controls_of(table)
    count = controls.metadata.Metadata_CellCount.to_numpy(float)
    plates = np.unique(controls.metadata.Metadata_Plate, return_inverse=True)[1]
    design = np.column_stack([count, np.eye(6)[plates]])
    slope = np.linalg.lstsq(design, controls.features, rcond=None)[0][0]
    out = RegressOut().fit_transform(table).features
    low, high = count.min(), count.max()
    moved = np.clip(table.metadata.Metadata_CellCount.to_numpy(float), low, high) - count.mean()
    np.testing.assert_allclose(out, table.features - np.outer(moved, slope), atol=1e-9)


def test_regress_out_takes_the_effect_of_the_count_out():
    table = fake_profiles(shift=0, scale=0)
    out = RegressOut().fit_transform(table)
    count = controls_of(table).metadata.Metadata_CellCount
    before, after = (
        np.abs([np.corrcoef(count, controls_of(p).features[:, j])[0, 1] for j in range(6)])
        for p in (table, out)
    )
    assert before.max() > 0.2
    assert after.max() < 0.15


def test_beyond_the_range_of_the_controls_is_clipped_with_a_warning():
    table = fake_profiles()
    count = table.metadata.Metadata_CellCount.to_list()
    treated = int(np.flatnonzero(table.metadata.Metadata_ControlType == "trt")[0])
    plain = RegressOut().fit(table)
    count[treated] = 100_000
    far = with_metadata(table, Metadata_CellCount=count)
    with pytest.warns(EvenfieldWarning, match=r"1 of 360 rows have Metadata_CellCount outside"):
        out = plain.transform(far)
    top = controls_of(table).metadata.Metadata_CellCount.max()
    count[treated] = int(top)
    at_the_end = plain.transform(with_metadata(table, Metadata_CellCount=count))
    np.testing.assert_allclose(out.features, at_the_end.features, atol=1e-6)


def test_position_is_taken_out():
    table = fake_profiles(shift=0, scale=0)
    row = table.metadata.Metadata_Well.str[0].map(lambda letter: ord(letter) - 65).to_numpy()
    tilted = table.with_features(table.features + np.float32(0.8) * row[:, None])
    words = with_metadata(tilted, Metadata_ControlType="negcon")  # controls all over the plate
    out = RegressOut(covariates=(), position=True).fit_transform(words)
    slopes = np.polyfit(row, out.features, 1)[0]
    assert np.abs(np.polyfit(row, tilted.features, 1)[0]).min() > 0.3
    assert np.abs(slopes).max() < 0.05


def test_what_cannot_be_taken_out_is_said():
    table = fake_profiles()
    with pytest.raises(InputError, match="nothing to take out"):
        RegressOut(covariates=()).fit(table)
    with pytest.raises(InputError, match="Metadata_CellCount varies"):
        RegressOut().fit(with_metadata(table, Metadata_CellCount=100))
    two = with_metadata(table, Metadata_Flat=1.0)
    with pytest.warns(EvenfieldWarning, match="Metadata_Flat do"):
        out = RegressOut(covariates=("Metadata_CellCount", "Metadata_Flat")).fit_transform(two)
    np.testing.assert_allclose(out.features, RegressOut().fit_transform(table).features, atol=1e-4)
    with pytest.raises(InputError, match="Metadata_Absent"):
        RegressOut(covariates=("Metadata_Absent",)).fit(table)
    few = of(fake_profiles(controls=1), "Metadata_Batch", "b0")
    with pytest.raises(InputError, match=r"2 reference row\(s\) in 2 domain"):
        RegressOut().fit(few)


def extended(table, **columns):
    """The table with more features."""
    more = np.column_stack([np.asarray(c, dtype=table.features.dtype) for c in columns.values()])
    return table.with_features(np.hstack([table.features, more]), (*table.names, *columns))


def test_select_features_drops_lost_constant_and_redundant_ones():
    table = fake_profiles()
    n, rng = len(table), numpy_generator(0, "select")
    lost = rng.normal(size=n)
    lost[::10] = np.nan
    wide = extended(
        table,
        lost=lost,
        constant=np.full(n, 5.0),
        faint=rng.normal(size=n) * 1e-4,
        twin=table.features[:, 0] * 2 + 1,
        opposite=-table.features[:, 1],
        Cells_Location_Center_X=rng.normal(size=n),
    )
    out = SelectFeatures(correlation=0.95).fit_transform(wide)
    assert {"lost", "constant", "faint", "Cells_Location_Center_X"}.isdisjoint(out.names)
    assert len({"f0", "twin"} & set(out.names)) == 1
    assert {"f1", "opposite"} <= set(out.names)  # signs count
    assert np.isfinite(out.features).all()
    kept = SelectFeatures(nan=0.2, correlation=None, positions=True).fit_transform(wide)
    assert {"lost", "twin", "f0", "Cells_Location_Center_X"} <= set(kept.names)


def test_select_features_keeps_the_same_features_of_new_rows():
    table = fake_profiles()
    fitted = SelectFeatures().fit(extended(table, flat=np.ones(len(table))))
    later = extended(table[:7], flat=np.arange(7.0))
    assert fitted.transform(later).names == table.names


def test_the_choice_does_not_depend_on_the_order_of_columns():
    table = extended(fake_profiles(), a=fake_profiles().features[:, 0], b=np.arange(360.0))
    order = [7, 2, 6, 0, 1, 5, 3, 4]
    moved = table.with_features(table.features[:, order], tuple(table.names[i] for i in order))
    plain, other = SelectFeatures().fit_transform(table), SelectFeatures().fit_transform(moved)
    assert set(plain.names) == set(other.names)


def test_nothing_left_is_an_error_with_counts():
    table = fake_profiles()
    with pytest.raises(InputError, match=r"none of 6 features: .*6 for variance"):
        SelectFeatures(variance=1e9).fit(table)
    with pytest.raises(InputError, match="6 for NaN"):
        SelectFeatures().fit(table.with_features(np.full_like(table.features, np.nan)))


def test_correlations_of_pairs_that_are_known_are_pandas():
    pandas = pytest.importorskip("pandas")
    x = numpy_generator(0, "r").normal(size=(40, 5)) + 1000
    x[numpy_generator(1, "r").random(x.shape) < 0.2] = np.nan
    np.testing.assert_allclose(correlations(x), pandas.DataFrame(x).corr(), atol=1e-9)
