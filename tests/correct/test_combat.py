"""ComBat: the posterior by hand, covariates, new batches, single rows."""

import numpy as np
import pytest
from corrector_cases import controls_of, fake_profiles, of, treated_of, with_metadata
from scipy.integrate import trapezoid

from evenfield.correct import CORRECTORS
from evenfield.correct.combat import posterior
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.seeds import numpy_generator

ComBat = CORRECTORS["combat"]


def spread_of_batch_means(table):
    means = [of(table, "Metadata_Batch", b).features.mean(0) for b in ("b0", "b1", "b2")]
    return np.std(means, axis=0).mean()


def test_posterior_is_the_fixed_point_of_its_two_equations():
    rng = numpy_generator(0, "posterior")
    gamma, n = rng.normal(0.5, 1, 40), 12
    square = (n - 1) * rng.gamma(3, 0.4, 40)
    delta = square / (n - 1)
    m, v = delta.mean(), delta.var(ddof=1)
    location, scale = posterior(gamma, square, n, m, v)
    a, b = (2 * v + m**2) / v, (m * v + m**3) / v
    g_bar, t2 = gamma.mean(), gamma.var()
    again = (n * t2 * gamma + scale * g_bar) / (n * t2 + scale)
    np.testing.assert_allclose(again, location, rtol=1e-3, atol=1e-3)
    again = (b + 0.5 * (square + n * (gamma - location) ** 2)) / (n / 2 + a - 1)
    np.testing.assert_allclose(again, scale, rtol=1e-3)
    # Shrunk towards the other features: less spread than the estimates.
    assert location.std() < gamma.std()
    assert scale.std() < delta.std()


def test_the_inverse_gamma_has_the_given_moments():
    """a and b of the prior, by numerical integration of the density."""
    mean, var = 1.3, 0.2
    ratio = mean**2 / var
    a, b = 2 + ratio, mean * (1 + ratio)
    x = np.linspace(1e-3, 60, 400_000)
    density = x ** (-a - 1) * np.exp(-b / x)
    density /= trapezoid(density, x)
    assert trapezoid(x * density, x) == pytest.approx(mean, rel=1e-3)
    assert trapezoid((x - mean) ** 2 * density, x) == pytest.approx(var, rel=1e-2)


def test_batches_get_one_mean_and_one_spread():
    table = fake_profiles(shift=3)
    out = ComBat().fit_transform(table)
    assert spread_of_batch_means(out) < 0.1 * spread_of_batch_means(table)
    np.testing.assert_allclose(out.features.mean(0), table.features.mean(0), atol=0.05)


def test_a_known_batch_under_a_new_name_is_corrected_as_in_fit():
    table = fake_profiles(dtype=np.float64)
    fitted = ComBat().fit(table)
    b1 = of(table, "Metadata_Batch", "b1")
    again = fitted.transform(with_metadata(b1, Metadata_Batch="new"))
    np.testing.assert_allclose(again.features, fitted.transform(b1).features, rtol=1e-9)


def test_a_new_batch_comes_to_the_others():
    table = fake_profiles(shift=3)
    fitted = ComBat().fit(of(table, "Metadata_Batch", "b0", "b1"))
    out = fitted.transform(table)
    assert spread_of_batch_means(out) < 0.2 * spread_of_batch_means(table)


def test_controls_only_never_look_at_treated_wells():
    table = fake_profiles(dtype=np.float64)
    fitted = ComBat(reference="controls").fit(table)
    assert fitted.unseen == "controls"
    np.testing.assert_array_equal(
        fitted.transform(table).features,
        ComBat(reference="controls").fit(controls_of(table)).transform(table).features,
    )
    with pytest.raises(InputError, match="no negative control"):
        fitted.transform(with_metadata(treated_of(table), Metadata_Batch="new"))


def test_covariates_are_kept():
    """Where the batches differ in treatments, only the covariate keeps the effect."""
    table = fake_profiles(shift=0, scale=0)
    told = table.metadata
    keep = (
        (told.Metadata_Treatment == "DMSO")
        | ((told.Metadata_Batch == "b0") == (told.Metadata_Treatment.isin(["t0", "t1"])))
    ).to_numpy()
    table = table[keep]
    plain = ComBat().fit_transform(table).features
    kept = ComBat(covariates=("Metadata_Treatment",)).fit_transform(table).features
    assert np.abs(kept - table.features).mean() < 0.5 * np.abs(plain - table.features).mean()


def test_numbers_are_linear_covariates_and_words_are_levels():
    table = fake_profiles(dtype=np.float64)
    fitted = ComBat(covariates=("Metadata_CellCount", "Metadata_Treatment")).fit(table)
    assert fitted.state["effect"].shape == (1 + 6, 6)
    assert fitted.state["levels.0"].size == 0
    assert fitted.state["levels.1"].tolist() == ["DMSO", "t0", "t1", "t2", "t3", "t4", "t5"]


def test_a_confounded_covariate_is_refused():
    table = fake_profiles()
    told = with_metadata(table, Metadata_Site=table.metadata.Metadata_Batch.str.upper())
    with pytest.raises(InputError, match=r"batches \(Metadata_Batch\) determine .*Metadata_Site"):
        ComBat(covariates=("Metadata_Site",)).fit(told)
    number = with_metadata(
        table, Metadata_Dose=table.metadata.Metadata_Batch.map({"b0": 1.0, "b1": 2.0, "b2": 5.0})
    )
    with pytest.raises(InputError, match="Metadata_Dose"):
        ComBat(covariates=("Metadata_Dose",)).fit(number)
    twice = ("Metadata_Treatment", "Metadata_Copy")
    copy = with_metadata(table, Metadata_Copy=table.metadata.Metadata_Treatment)
    with pytest.raises(InputError, match="or these each other"):
        ComBat(covariates=twice).fit(copy)


def test_an_unknown_level_or_number_is_refused_at_transform():
    table = fake_profiles()
    fitted = ComBat(covariates=("Metadata_Treatment",)).fit(table)
    with pytest.raises(InputError, match=r"1 value\(s\) that `fit` did not see \(new\)"):
        fitted.transform(with_metadata(table[:5], Metadata_Treatment="new"))
    fitted = ComBat(covariates=("Metadata_CellCount",)).fit(table)
    with pytest.raises(InputError, match="no finite numbers"):
        fitted.transform(with_metadata(table[:5], Metadata_CellCount=np.nan))


def test_one_batch_stays_as_it_is_and_is_the_reference_of_new_ones():
    table = fake_profiles(dtype=np.float64, shift=3)
    b0 = of(table, "Metadata_Batch", "b0")
    fitted = ComBat().fit(b0)
    np.testing.assert_allclose(fitted.transform(b0).features, b0.features, rtol=1e-12)
    moved = fitted.transform(of(table, "Metadata_Batch", "b1")).features
    np.testing.assert_allclose(moved.mean(0), b0.features.mean(0), atol=0.3)


def test_a_batch_of_one_row_takes_the_others_prior_of_scale():
    table = fake_profiles()
    names = table.metadata.Metadata_Batch.to_list()
    names[0] = "lonely"
    out = ComBat().fit_transform(with_metadata(table, Metadata_Batch=names))
    assert np.isfinite(out.features).all()
    assert np.abs(out.features[0] - out.features.mean(0)).max() < 10
    with pytest.raises(InputError, match="single row"):
        ComBat().fit(with_metadata(table, Metadata_Batch=[str(i) for i in range(len(table))]))


def test_a_flat_feature_stays_as_it_is_by_name():
    table = fake_profiles()
    x = table.features.copy()
    x[:, 3] = table.metadata.Metadata_Batch.map({"b0": 1.0, "b1": 2.0, "b2": 3.0})
    with pytest.warns(EvenfieldWarning, match=r"1 feature.*stay as they are: f3"):
        out = ComBat().fit_transform(table.with_features(x))
    np.testing.assert_array_equal(out.features[:, 3], x[:, 3])
    rest = [0, 1, 2, 4, 5]
    alone = ComBat().fit_transform(
        table.with_features(x[:, rest], tuple(table.names[i] for i in rest))
    )
    np.testing.assert_allclose(out.features[:, rest], alone.features, rtol=1e-5, atol=1e-5)
