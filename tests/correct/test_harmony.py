"""Harmony: its equations, what it does to clusters and batches, new batches, order and names."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.correct import CORRECTORS
from evenfield.correct.harmony import assigned, penalty, ridge, unit_rows
from evenfield.errors import InputError
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles

Harmony = CORRECTORS["harmony"]


def clusters(n=900, d=8, batches=3, kinds=5, seed=0):
    """Cells of a few kinds, whose shares differ by batch; an offset by batch, and by kind in it."""
    rng = numpy_generator(seed, "clusters")
    centre, offset = 4 * rng.normal(size=(kinds, d)), 1.2 * rng.normal(size=(batches, d))
    own = 0.4 * rng.normal(size=(batches, kinds, d))
    batch = rng.integers(0, batches, n)
    shares = rng.dirichlet(np.full(kinds, 4.0), size=batches)
    kind = np.array([rng.choice(kinds, p=shares[b]) for b in batch])
    x = centre[kind] + offset[batch] + own[batch, kind] + 0.7 * rng.normal(size=(n, d))
    metadata = pd.DataFrame({"Metadata_Batch": [f"b{b}" for b in batch]})
    names = tuple(f"f{i}" for i in range(d))
    return Profiles(features=x.astype(np.float32), names=names, metadata=metadata), batch, kind


def same_among_neighbours(z, code, k=20):
    """Share of a row's nearest rows that carry its code."""
    length = np.square(z).sum(1)
    distance = length[:, None] + length - 2 * z @ z.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.argpartition(distance, k, axis=1)[:, :k]
    return float((code[nearest] == code[:, None]).mean())


@settings(deadline=None, max_examples=15)
@given(b=st.integers(1, 4), k=st.integers(1, 3), seed=st.integers(0, 99))
def test_ridge_solves_the_regression_of_each_cluster(b, k, seed):
    """The closed form is weighted ridge on an intercept and batches, with a reference's rows."""
    rng = numpy_generator(seed, "ridge")
    n, e, weight = 12, 2, 0.7
    z, r = rng.normal(size=(n, e)), rng.random((n, k))
    batch = np.r_[np.arange(b), rng.integers(0, b, n - b)]
    design = np.hstack([np.ones((n, 1)), np.eye(b)[batch]])
    reference, share = rng.normal(size=(5, e)), rng.random((5, k))
    num = np.stack([r[batch == i].sum(0) for i in range(b)])
    sums = np.stack([r[batch == i].T @ z[batch == i] for i in range(b)])
    ours = ridge(num, sums, share.sum(0), share.T @ reference, weight)
    for cluster in range(k):
        full = np.vstack([design, np.hstack([np.ones((5, 1)), np.zeros((5, b))])])
        w = np.r_[r[:, cluster], share[:, cluster]]
        normal = (full * w[:, None]).T @ full + np.diag([0.0] + [weight] * b)
        expected = np.linalg.solve(normal, (full * w[:, None]).T @ np.vstack([z, reference]))
        np.testing.assert_allclose(ours[:, cluster], expected[1:], atol=1e-8)


def test_assignments_are_the_formula():
    z, centroid = np.array([[3.0, 4.0]]), unit_rows(np.array([[1.0, 0.0], [1.0, 1.0]]))
    bias = np.array([0.2, -0.1])
    cosine = np.array([0.6, 1.4 / np.sqrt(2)])
    raw = np.exp(-2 * (1 - cosine) / 0.1) * np.exp(bias)
    np.testing.assert_allclose(assigned(z, centroid, bias, 0.1)[0], raw / raw.sum())
    observed = np.array([[4.0, 0.0], [2.0, 6.0]])
    expected = np.array([0.5, 0.5])[:, None] * observed.sum(0)
    np.testing.assert_allclose(
        np.exp(penalty(observed, np.array([0.5, 0.5]), 2.0)),
        ((expected + 1) / (observed + 1)) ** 2,
    )


def test_batches_mix_and_kinds_stay_apart():
    table, batch, kind = clusters()
    out = Harmony().fit_transform(table)
    chance = np.square(np.bincount(batch) / len(batch)).sum()
    before, after = (same_among_neighbours(p.features, batch) for p in (table, out))
    assert before > 0.9
    assert after < chance + 0.25
    assert same_among_neighbours(out.features, kind) > 0.97


def test_without_penalty_and_one_batch_nothing_moves():
    table, _, _ = clusters(batches=1)
    out = Harmony(num_components=None).fit_transform(table)
    np.testing.assert_allclose(out.features, table.features, atol=1e-4)


def test_a_new_batch_is_mapped_onto_the_fitted_ones():
    table, batch, kind = clusters()
    fitted = Harmony().fit(table[batch != 0])
    out = fitted.transform(table)
    new = batch == 0
    left = np.where(new[:, None], fitted._projected(table.features, fitted.state), out.features)
    chance = np.square(np.bincount(new) / len(new)).sum()
    assert same_among_neighbours(left, new) > 0.8
    assert same_among_neighbours(out.features, new) < chance + 0.12
    assert same_among_neighbours(out.features, kind) > 0.97


def test_the_fitted_rows_do_not_change_when_a_new_batch_comes():
    table, batch, _ = clusters()
    fitted = Harmony().fit(table[batch != 0])
    np.testing.assert_allclose(
        fitted.transform(table).features[batch != 0],
        fitted.transform(table[batch != 0]).features,
        atol=1e-3,
    )


def test_rows_get_what_the_fit_gave_them():
    """The stored map is that of the last turn, not a guess at it."""
    table, _, _ = clusters()
    fitted = Harmony(iterations=30, tolerance=1e-4, num_components=None).fit(table)
    total = fitted.state["total"].sum(0) / fitted.state["weight"].sum()
    np.testing.assert_allclose(fitted.transform(table).features.mean(0), total, atol=2e-2)


def test_output_in_the_space_of_features():
    table, _, _ = clusters(d=8)
    moved = Harmony(output="features", num_components=3).fit_transform(table)
    assert moved.names == table.names
    fitted = Harmony(num_components=3).fit(table)
    vector = fitted.state["vector"]
    shift = fitted.transform(table).features - fitted._projected(table.features, fitted.state)
    np.testing.assert_allclose(moved.features - table.features, shift @ vector.T, atol=1e-4)
    assert fitted.transform(table).names == ("Harmony_0", "Harmony_1", "Harmony_2")


def test_the_order_and_the_names_do_not_matter():
    table, _, _ = clusters()
    out = Harmony().fit_transform(table).features
    order = numpy_generator(3, "order").permutation(len(table))
    renamed = table[order]
    renamed.metadata["Metadata_Batch"] = renamed.metadata.Metadata_Batch.map(
        {"b0": "z", "b1": "m", "b2": "a"}
    )
    np.testing.assert_allclose(Harmony().fit_transform(renamed).features, out[order], atol=1e-3)


def test_the_seed_decides_the_first_centroids_only():
    table, _, kind = clusters()
    first, again, other = (Harmony(seed=s).fit_transform(table).features for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert same_among_neighbours(other, kind) > 0.97


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match="sigma is 0"):
        Harmony(sigma=0.0)
    with pytest.raises(InputError, match="num_clusters"):
        Harmony(num_clusters=0)
