"""sphering, tvn and coral: white controls, rank, and the formulas letter by letter."""

import numpy as np
import pytest
from corrector_cases import controls_of, fake_profiles, of, with_metadata
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import fractional_matrix_power
from sklearn.base import clone

from evenfield.correct import CORRECTORS
from evenfield.correct.base.linear import ridged_inverse_root, scatter, settled, shrinkage
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.seeds import numpy_generator

Sphering = CORRECTORS["sphering"]
TVN = CORRECTORS["tvn"]
CORAL = CORRECTORS["coral"]


def cov(x):
    return np.cov(np.asarray(x, dtype=float), rowvar=False)


@pytest.mark.parametrize("kind", ["zca", "zca-cor", "pca"])
def test_sphering_whitens_controls_of_shifted_scaled_correlated_data(kind):
    table = fake_profiles(d=8, controls=40)
    units = np.float32(10) ** np.linspace(-2, 2, 8, dtype=np.float32)
    table = table.with_features(table.features * units + np.float32(50))
    out = Sphering(kind=kind, epsilon=0.0).fit_transform(table)
    assert out.features.dtype == np.float32
    np.testing.assert_allclose(cov(controls_of(out).features), np.eye(len(out.names)), atol=1e-3)
    np.testing.assert_allclose(controls_of(out).features.mean(0), 0, atol=1e-3)


def test_zca_is_the_symmetric_root_and_pca_its_rotation():
    table = fake_profiles(dtype=np.float64)
    x = controls_of(table).features
    centred = table.features - x.mean(0)
    zca = Sphering(epsilon=0.0).fit_transform(table).features
    np.testing.assert_allclose(zca, centred @ fractional_matrix_power(cov(x), -0.5), atol=1e-9)
    sd = x.std(0, ddof=1)
    correlation = cov(x) / np.outer(sd, sd)
    zca_cor = Sphering(kind="zca-cor", epsilon=0.0).fit_transform(table).features
    root = fractional_matrix_power(correlation, -0.5)
    np.testing.assert_allclose(zca_cor, centred / sd @ root, atol=1e-9)
    pca = Sphering(kind="pca", epsilon=0.0).fit_transform(table)
    assert pca.names[0] == "Sphering_0"
    # Both whiten: distances are the same, to the last rotation.
    np.testing.assert_allclose(pca.features @ pca.features.T, zca @ zca.T, atol=1e-8)


@pytest.mark.parametrize("kind", ["zca", "zca-cor"])
def test_white_controls_stay(kind):
    once = Sphering(kind=kind, epsilon=0.0).fit_transform(fake_profiles(dtype=np.float64))
    again = Sphering(kind=kind, epsilon=0.0).fit_transform(once)
    np.testing.assert_allclose(again.features, once.features, atol=1e-8)


def test_epsilon_is_added_to_variances():
    table = fake_profiles(dtype=np.float64)
    x = controls_of(table).features
    value, vector = np.linalg.eigh(cov(x))
    expected = (table.features - x.mean(0)) @ (vector / np.sqrt(value + 0.5)) @ vector.T
    np.testing.assert_allclose(
        Sphering(epsilon=0.5).fit_transform(table).features, expected, atol=1e-9
    )


def test_fitted_on_train_a_new_batch_is_mapped_without_refitting():
    table = fake_profiles()
    fitted = Sphering().fit(of(table, "Metadata_Batch", "b0", "b1"))
    new = of(table, "Metadata_Batch", "b2")
    state = fitted.state
    by_hand = (new.features - state["mean"]) @ state["matrix"]
    np.testing.assert_allclose(fitted.transform(new).features, by_hand, atol=1e-4)


def test_no_more_controls_than_features_shrinks_with_both_numbers():
    table = fake_profiles(num_batches=1, plates=1, controls=10, d=30)
    with pytest.warns(EvenfieldWarning, match=r"10 reference rows of rank 9 for 30 features"):
        out = Sphering(epsilon=0.0).fit_transform(table)
    value = np.linalg.eigvalsh(cov(controls_of(out).features))
    assert value.max() < 3  # nothing is blown up
    assert np.abs(out.features).max() < 30
    with pytest.warns(EvenfieldWarning, match=r"rank 9 for 30 features: only 9 directions"):
        few = Sphering(epsilon=0.0, few="reduce", kind="pca").fit_transform(table)
    np.testing.assert_allclose(cov(controls_of(few).features), np.eye(9), atol=1e-3)


def test_blind_whitening_of_few_controls_would_ruin_the_profiles():
    """Why the rule: without shrinkage, rows that were not fitted on explode."""
    table = fake_profiles(num_batches=1, plates=1, controls=31, treated=60, d=30, shift=0)
    blind = Sphering(epsilon=0.0).fit(table)  # one control more than features: no rule applies
    held_out = fake_profiles(num_batches=1, plates=1, controls=200, d=30, shift=0)
    spread = blind.transform(controls_of(held_out)).features.std()
    with pytest.warns(EvenfieldWarning):
        shrunk = Sphering().fit(table[np.r_[:30, 31:91]])
    calm = shrunk.transform(controls_of(held_out)).features.std()
    assert spread > 3 * calm


def test_a_feature_that_does_not_vary_among_controls_is_left_out():
    table = fake_profiles()
    x = table.features.copy()
    x[(table.metadata.Metadata_ControlType == "negcon").to_numpy(), 1] = 0.1
    with pytest.warns(EvenfieldWarning, match="left out: f1"):
        out = Sphering().fit_transform(table.with_features(x))
    assert out.names == ("f0", "f2", "f3", "f4", "f5")


def test_features_that_depend_on_each_other_are_told():
    table = fake_profiles(dtype=np.float64)
    twin = table.with_features(
        np.hstack([table.features, table.features[:, :2].sum(1, keepdims=True)]),
        (*table.names, "sum"),
    )
    with pytest.warns(EvenfieldWarning, match="rank 6 for 7 features"):
        out = Sphering(epsilon=0.0, few="reduce").fit_transform(twin)
    assert np.abs(out.features).max() < 100


@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 12), d=st.integers(1, 8), seed=st.integers(0, 99))
def test_ledoit_wolf_is_scikit_learns(n, d, seed):
    covariance = pytest.importorskip("sklearn.covariance")
    x = numpy_generator(seed, "lw").normal(size=(n, d)) * np.arange(1, d + 1)
    mean, ones = x.mean(0), np.ones(d)
    ours = shrinkage(x, mean, ones, scatter(x, mean, ones) / n)
    assert ours == pytest.approx(covariance.ledoit_wolf_shrinkage(x), abs=1e-9) or d == 1


@settings(deadline=None, max_examples=20)
@given(m=st.integers(1, 9), r=st.integers(1, 9), ridge=st.floats(0.01, 10))
def test_the_ridged_root_by_either_side(m, r, ridge):
    z = numpy_generator(m, r, "root").normal(size=(m, r))
    expected = fractional_matrix_power(0.3 * z.T @ z + ridge * np.eye(r), -0.5)
    np.testing.assert_allclose(ridged_inverse_root(z, 0.3, ridge), expected, atol=1e-8)


def tvn_by_steps(table, ridge=0.5):
    """EFAAR's four steps, one after the other, in float64, with fractional powers."""
    is_control = (table.metadata.Metadata_ControlType == "negcon").to_numpy()
    e = table.features.astype(float)
    e = (e - e[is_control].mean(0)) / e[is_control].std(0)
    vector = np.linalg.eigh(np.cov(e[is_control], rowvar=False))[1]
    e = (e - e[is_control].mean(0)) @ vector[:, ::-1]
    e = (e - e[is_control].mean(0)) / e[is_control].std(0)
    third = e.copy()
    for batch in table.metadata.Metadata_Batch.unique():
        rows = (table.metadata.Metadata_Batch == batch).to_numpy()
        source = np.cov(e[rows & is_control], rowvar=False) + ridge * np.eye(e.shape[1])
        e[rows] = e[rows] @ fractional_matrix_power(source, -0.5)
    return third, e


@pytest.mark.parametrize("controls", [5, 24])  # 10 and 48 a batch, for 8 features
def test_tvn_is_efaars_four_steps(controls):
    table = fake_profiles(d=8, controls=controls, dtype=np.float64)
    ours = TVN().fit_transform(table).features
    _, theirs = tvn_by_steps(table)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, rtol=1e-6, atol=1e-6)


def test_tvn_with_a_large_ridge_tends_to_step_three():
    table = of(fake_profiles(dtype=np.float64), "Metadata_Batch", "b0")
    third, _ = tvn_by_steps(table)
    out = TVN(ridge=1e6).fit_transform(table).features * np.sqrt(1e6)
    np.testing.assert_allclose(np.abs(out), np.abs(third), rtol=1e-3, atol=1e-3)
    alone = TVN(domain=None).fit_transform(table).features
    np.testing.assert_allclose(np.abs(alone), np.abs(third), rtol=1e-6, atol=1e-6)


def test_tvn_fitted_on_train_takes_a_new_batch_by_its_controls():
    table = fake_profiles()
    fitted = TVN().fit(of(table, "Metadata_Batch", "b0", "b1"))
    known = of(table, "Metadata_Batch", "b1")
    out = fitted.transform(with_metadata(known, Metadata_Batch="another"))
    np.testing.assert_allclose(out.features, fitted.transform(known).features, atol=1e-5)


def test_tvn_with_few_controls_shrinks_with_both_numbers():
    table = fake_profiles(num_batches=2, plates=1, controls=5, d=30)
    with pytest.warns(EvenfieldWarning) as told:
        out = TVN().fit_transform(table)
    first, second = (str(warning.message) for warning in told)
    assert "10 controls of rank 9 for 30 features" in first
    assert "2 domain(s) (b0, b1) have no more controls (the fewest: 5) than the 30" in second
    assert out.names == tuple(f"TVN_{i}" for i in range(30))
    assert np.abs(out.features).max() < 30


@pytest.mark.parametrize(
    "corrector", [TVN(), TVN(domain=None), Sphering(kind="pca")], ids=["tvn", "no coral", "pca"]
)
def test_components_without_variance_do_not_hang_on_rounding(corrector):
    """Any basis of them is as right; medians of wells would see which one rounding chose."""
    table = fake_profiles(num_batches=2, plates=1, controls=5, d=30, dtype=np.float64)
    order = numpy_generator(1, "columns").permutation(30)
    other = table.with_features(table.features[:, order], tuple(np.array(table.names)[order]))
    with pytest.warns(EvenfieldWarning):
        a, b = (clone(corrector).fit_transform(each) for each in (table, other))
    # The sign of a component follows its largest entry, whichever feature that is.
    np.testing.assert_allclose(a.features, b.features, atol=1e-7)


def test_settled_vectors_span_the_same_and_stay_orthonormal():
    rng = numpy_generator(2, "settled")
    vector = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    turn = np.eye(9)
    turn[4:, 4:] = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    a, b = settled(vector, 4), settled(vector @ turn, 4)
    np.testing.assert_allclose(a, b, atol=1e-12)
    np.testing.assert_allclose(a.T @ a, np.eye(9), atol=1e-12)
    np.testing.assert_array_equal(a[:, :4], vector[:, :4])
    assert settled(vector, 8) is vector


def test_tvn_trusts_a_batch_with_few_controls_only_as_far():
    """Shrunk to m : d, the covariance of a batch is `share S + (1 - share) I`, plus the ridge."""
    table = fake_profiles(num_batches=8, plates=1, controls=5, d=8, dtype=np.float64)
    with pytest.warns(EvenfieldWarning, match=r"8 domain\(s\)"):
        fitted = TVN().fit(table)
    third = TVN(domain=None).fit_transform(table)
    x = of(third, "Metadata_Batch", "b3")
    share = 4 / (4 + 8)
    source = share * cov(controls_of(x).features) + (1 - share + 0.5) * np.eye(8)
    expected = x.features @ fractional_matrix_power(source, -0.5)
    ours = fitted.transform(of(table, "Metadata_Batch", "b3")).features
    np.testing.assert_allclose(ours, expected, atol=1e-8)


def test_tvn_leaves_out_what_does_not_vary_by_name():
    table = fake_profiles()
    x = table.features.copy()
    x[(table.metadata.Metadata_ControlType == "negcon").to_numpy(), 1] = 0.1
    with pytest.warns(EvenfieldWarning, match="no share in a component: f1"):
        out = TVN().fit_transform(table.with_features(x))
    rest = [0, 2, 3, 4, 5]
    alone = TVN().fit_transform(
        table.with_features(x[:, rest], tuple(table.names[i] for i in rest))
    )
    np.testing.assert_allclose(out.features, alone.features, atol=1e-4)


def test_tvn_with_a_single_control_in_a_batch_takes_the_pooled_covariance():
    table = fake_profiles()
    told = table.metadata
    keep = (
        (told.Metadata_Batch != "b1")
        | (told.Metadata_ControlType == "trt")
        | ((told.Metadata_Plate == "b1p0") & (told.Metadata_Well == "A01"))
    ).to_numpy()
    with pytest.warns(EvenfieldWarning, match=r"1 domain\(s\) \(b1\) have no more .*fewest: 1\)"):
        out = TVN().fit(table[keep])
    plain = TVN(domain=None).fit(table[keep])
    b1 = of(table[keep], "Metadata_Batch", "b1")
    np.testing.assert_allclose(
        out.transform(b1).features * np.sqrt(1.5), plain.transform(b1).features, atol=1e-4
    )


def test_coral_gives_each_batch_the_pooled_mean_and_covariance():
    table = fake_profiles(controls=60, dtype=np.float64)
    out = CORAL(prior=1e-3).fit_transform(table)
    residuals = [
        (x := of(controls_of(table), "Metadata_Batch", b).features) - x.mean(0)
        for b in ("b0", "b1", "b2")
    ]
    pooled = np.concatenate(residuals)
    pooled = pooled.T @ pooled / (len(pooled) - 3)
    for batch in ("b0", "b1", "b2"):
        x = controls_of(of(out, "Metadata_Batch", batch)).features
        np.testing.assert_allclose(x.mean(0), controls_of(table).features.mean(0), rtol=1e-9)
        np.testing.assert_allclose(cov(x), pooled, rtol=1e-3, atol=1e-3)


def test_coral_does_not_depend_on_units():
    table = fake_profiles(dtype=np.float64)
    units = 10.0 ** np.arange(-3, 3)
    plain = CORAL().fit_transform(table).features
    scaled = CORAL().fit_transform(table.with_features(table.features * units)).features
    np.testing.assert_allclose(scaled / units, plain, rtol=1e-6, atol=1e-8)


def test_coral_leaves_a_single_batch_alone_and_shifts_where_controls_are_few():
    one = of(fake_profiles(dtype=np.float64), "Metadata_Batch", "b0")
    np.testing.assert_allclose(CORAL().fit_transform(one).features, one.features, atol=1e-9)
    table = fake_profiles(dtype=np.float64)
    out = CORAL(prior=1e9).fit_transform(table)
    shift = out.features - table.features
    for batch in ("b0", "b1", "b2"):
        rows = (table.metadata.Metadata_Batch == batch).to_numpy()
        np.testing.assert_allclose(shift[rows].std(0), 0, atol=1e-5)


def test_coral_shrinks_with_both_numbers():
    table = fake_profiles(num_batches=2, plates=1, controls=5, d=30)
    with pytest.warns(EvenfieldWarning, match="10 controls of rank 8 for 30 features"):
        out = CORAL().fit_transform(table)
    assert out.names == table.names
    assert np.abs(out.features).max() < 3 * np.abs(table.features).max()


@pytest.mark.parametrize("corrector", [Sphering(), TVN(domain=None)])
def test_a_single_control_is_refused_by_name(corrector):
    table = fake_profiles(num_batches=1, plates=1, controls=1)
    with pytest.raises(InputError, match=corrector.name):
        corrector.fit(table)
