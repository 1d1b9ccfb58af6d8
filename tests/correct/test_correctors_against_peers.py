"""Equality with the software that people use, where it is right; and a test where it is not."""

import contextlib
import io
import warnings

import numpy as np
import pandas as pd
import pytest
from corrector_cases import controls_of, fake_profiles

from evenfield.correct import CORRECTORS
from evenfield.errors import EvenfieldWarning
from evenfield.seeds import numpy_generator


@pytest.fixture(scope="module")
def table():
    return fake_profiles(d=12, controls=40, dtype=np.float64)


@pytest.fixture(scope="module")
def frame(table):
    return pd.concat(
        [table.metadata, pd.DataFrame(table.features, columns=list(table.names))], axis=1
    )


def normalized(frame, table, **settings):
    """pycytominer's answer, its own way: controls only."""
    pycytominer = pytest.importorskip("pycytominer")
    out = pycytominer.normalize(
        frame,
        features=list(table.names),
        meta_features=list(table.metadata.columns),
        samples="Metadata_ControlType == 'negcon'",
        **settings,
    )
    return out[[c for c in out.columns if not c.startswith("Metadata_")]].to_numpy()


@pytest.mark.parametrize(
    ("method", "name"), [("standardize", "standardise"), ("mad_robustize", "mad-robustize")]
)
def test_by_plate_as_pycytominer(table, frame, method, name):
    theirs = np.concatenate(
        [
            normalized(plate, table, method=method)
            for _, plate in frame.groupby("Metadata_Plate", sort=False)
        ]
    )
    ours = CORRECTORS[name]().fit_transform(table).features
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "name"), [("ZCA", "zca"), ("ZCA-cor", "zca-cor"), ("PCA", "pca")])
def test_sphering_as_pycytominer(table, frame, kind, name):
    theirs = normalized(
        frame, table, method="spherize", spherize_method=kind, spherize_epsilon=1e-10
    )
    ours = CORRECTORS["sphering"](kind=name, epsilon=0.0).fit_transform(table).features
    if kind == "PCA":  # signs are free
        ours, theirs = np.abs(ours), np.abs(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-7)


def test_the_rank_guard_of_pycytominer_guards_nothing_and_ours_does():
    """A feature that is the sum of two others: their weights explode, ours are told and bounded."""
    transform = pytest.importorskip("pycytominer.operations.transform")
    rng = numpy_generator(0, "rank")
    x = rng.normal(size=(200, 10))
    x = np.column_stack([x, x[:, 0] + x[:, 1]])
    theirs = transform.Spherize(method="ZCA", epsilon=1e-6).fit(pd.DataFrame(x))
    assert np.abs(theirs.W).max() > 1e5
    table = fake_profiles(num_batches=1, plates=1, controls=200, treated=0, d=11)
    with pytest.warns(EvenfieldWarning, match="rank 10 for 11 features"):
        ours = CORRECTORS["sphering"]().fit(table.with_features(x))
    assert np.abs(ours.state["matrix"]).max() < 100


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_feature_selection_as_pycytominer(table, frame, threshold):
    operations = pytest.importorskip("pycytominer.operations")
    features = list(table.names)
    ours = CORRECTORS["select-features"](correlation=threshold).fit_transform(table).names
    theirs = operations.correlation_threshold(frame, features=features, threshold=threshold)
    assert set(ours) == set(features) - set(theirs)
    for limit in (1.0, 1.5, 3.0):
        variance = CORRECTORS["select-features"](correlation=None, variance=limit)
        theirs = operations.variance_threshold(frame, features=features, min_variance=limit)
        assert set(variance.fit_transform(table).names) == set(features) - set(theirs)


def test_combat_as_scanpy(table):
    scanpy, anndata = pytest.importorskip("scanpy"), pytest.importorskip("anndata")
    obs = table.metadata.astype({"Metadata_CellCount": float})
    data = anndata.AnnData(table.features.copy(), obs=obs.set_index(obs.index.astype(str)))
    ours = CORRECTORS["combat"]().fit_transform(table).features
    theirs = scanpy.pp.combat(data, key="Metadata_Batch", inplace=False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    told = ("Metadata_CellCount",)
    ours = CORRECTORS["combat"](covariates=told).fit_transform(table).features
    theirs = scanpy.pp.combat(data, key="Metadata_Batch", covariates=list(told), inplace=False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_combat_with_levels_as_neurocombat(table):
    """neuroCombat takes other degrees of freedom: equal to 1 % of a standard deviation."""
    neuro = pytest.importorskip("neuroCombat")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = neuro.neuroCombat(
            dat=table.features.T,
            covars=table.metadata,
            batch_col="Metadata_Batch",
            categorical_cols=["Metadata_Treatment"],
            continuous_cols=["Metadata_CellCount"],
        )["data"].T
    covariates = ("Metadata_Treatment", "Metadata_CellCount")
    ours = CORRECTORS["combat"](covariates=covariates).fit_transform(table).features
    np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_harmony_agrees_with_harmonypy():
    """At the paper's ridge: coordinates correlate above 0.995, neighbourhoods mix alike.

    harmonypy 2.1's own default estimates a larger ridge in each cluster and mixes less.
    """
    harmonypy = pytest.importorskip("harmonypy")
    from test_harmony import clusters, same_among_neighbours

    for seed in (0, 1):
        cells, batch, kind = clusters(n=1200, d=12, seed=seed)
        theirs = harmonypy.run_harmony(
            cells.features, cells.metadata, "Metadata_Batch", lamb=1, verbose=False, ncores=1
        ).Z_corr
        ours = CORRECTORS["harmony"](num_components=None).fit_transform(cells).features
        assert theirs.shape == ours.shape
        correlation = [np.corrcoef(ours[:, j], theirs[:, j])[0, 1] for j in range(12)]
        assert min(correlation) > 0.995
        assert same_among_neighbours(ours, kind) == pytest.approx(
            same_among_neighbours(theirs, kind), abs=0.01
        )
        assert same_among_neighbours(ours, batch) == pytest.approx(
            same_among_neighbours(theirs, batch), abs=0.03
        )


def test_a_saved_fit_is_what_peers_lack(table):
    """Fitted on controls alone, the answer for all rows is that of controls and rows together."""
    sphering = CORRECTORS["sphering"]
    alone = sphering().fit(controls_of(table)).transform(table).features
    np.testing.assert_allclose(alone, sphering().fit_transform(table).features, atol=1e-9)
