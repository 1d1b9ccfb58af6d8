"""Nearest neighbours, votes and linear probes; the CPJUMP1 figures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_cases import screen
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors

from evenfield.errors import InputError
from evenfield.metrics.base import PROFILE_METRICS, evaluate_profiles
from evenfield.metrics.kernels import nearest as module
from evenfield.metrics.kernels import similarity
from evenfield.metrics.kernels.nearest import nearest
from evenfield.metrics.kernels.view import Columns
from evenfield.metrics.neighbours import vote
from evenfield.metrics.probe import grouped_folds, ridge_labels
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles

PLATES = Path(__file__).parents[2].parent / "shared" / "data" / "cpjump1_profiles"


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10**6),
    st.integers(3, 60),
    st.sampled_from(["cosine", "euclidean"]),
    st.sampled_from([16, 512, 2**24]),
)
def test_neighbours_equal_scikit_learn(seed, num, distance, block):
    rng = numpy_generator(seed, "nearest")
    x = rng.normal(size=(num, 5)) + rng.normal(size=5) * 3
    k = int(rng.integers(1, num))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "BLOCK_NUMBERS", block)
        found = nearest(x, k, distance=distance)
    far, index = NearestNeighbors(n_neighbors=k + 1, metric=distance).fit(x).kneighbors(x)
    np.testing.assert_array_equal(found.index, index[:, 1:])
    measured = found.distance**2 / 2 if distance == "cosine" else found.distance
    np.testing.assert_allclose(measured, far[:, 1:], atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(4, 40), st.sampled_from([16, 2**24]))
def test_foreign_neighbours_equal_brute_force(seed, num, block):
    rng = numpy_generator(seed, "foreign")
    x, code = rng.normal(size=(num, 3)), rng.integers(0, 3, num)
    k = min(4, num - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "BLOCK_NUMBERS", block)
        found = nearest(x, k, distance="euclidean", foreign=code)
    for i in range(num):
        others = [j for j in range(num) if code[j] != code[i]]
        wanted = sorted(others, key=lambda j: ((x[i] - x[j]) ** 2).sum())[:k]
        assert found.index[i].tolist() == wanted + [-1] * (k - len(wanted))
        assert np.isinf(found.distance[i]).sum() == k - len(wanted)


def test_float32_neighbours_are_those_of_float64(monkeypatch):
    x = numpy_generator(0, "float32").normal(size=(500, 64)) + 100
    exact = nearest(x, 10, distance="euclidean")
    monkeypatch.setattr(module, "dtype_for", lambda *_: np.float32)
    single = nearest(x, 10, distance="euclidean")
    assert (single.index == exact.index).mean() > 0.999
    np.testing.assert_allclose(single.distance, exact.distance, rtol=1e-4)


def test_neighbours_want_a_possible_k():
    for k in (0, 5):
        with pytest.raises(InputError, match="between 1 and 4"):
            nearest(np.eye(5), k)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=6))
def test_vote_is_the_mode_and_the_nearest_breaks_ties(rows):
    labels = np.array(rows)
    distance = np.tile(np.arange(5.0), (len(rows), 1))
    for row, won in zip(rows, vote(labels, distance), strict=True):
        best = max(map(row.count, row))
        assert won == next(label for label in row if row.count(label) == best)
    distance[:, 2:] = np.inf  # only the two nearest exist
    assert vote(labels, distance).tolist() == [row[0] for row in rows]


@pytest.mark.parametrize(("num", "d"), [(30, 5), (12, 40)])
def test_ridge_equals_scikit_learn(num, d):
    rng = numpy_generator(num, "ridge")
    x, z = rng.normal(size=(num, d)) * 3 + 1, rng.normal(size=(9, d)) * 3 + 1
    label = np.arange(num) % 3 + 4
    mean, spread = x.mean(0), x.std(0)
    model = Ridge(alpha=0.3 * num).fit((x - mean) / spread, np.eye(3)[label - 4])
    expected = model.predict((z - mean) / spread).argmax(1) + 4
    constant = [np.c_[part, np.full(len(part), 7.0)] for part in (x, z)]
    assert ridge_labels(x, label, z, 0.3).tolist() == expected.tolist()
    # A feature without spread is no feature.
    assert ridge_labels(constant[0], label, constant[1], 0.3).tolist() == expected.tolist()


def test_folds_keep_groups_together_and_cover_everything():
    group = numpy_generator(0, "folds").integers(0, 11, 80)
    tested = np.zeros(80, int)
    for train, test in grouped_folds(group, 4, numpy_generator(1, "folds")):
        assert not set(group[train]) & set(group[test])
        assert (train ^ test).all()
        tested += test
    assert (tested == 1).all()


def test_biology_across_domains_rises_when_the_batch_effect_goes():
    metrics = ["knn", "linear-probe", "same-domain-neighbours", "domain-probe-treated"]
    options = {"num_batches": 4, "num_compounds": 24, "num_features": 40, "signal": 0.8}
    clean, spoilt = (evaluate_profiles(screen(batch=b, **options), metrics) for b in (0.0, 6.0))
    assert clean["knn"].value > 0.9 > 0.6 > spoilt["knn"].value
    assert clean["linear-probe"].value > 0.9
    assert spoilt["same-domain-neighbours"].value > 0.99
    assert abs(clean["same-domain-neighbours"].value - clean["same-domain-neighbours"].chance) < 0.1
    assert spoilt["domain-probe-treated"].value > 0.99
    assert clean["domain-probe-treated"].value < 0.45  # chance 0.25
    for score in (*clean.values(), *spoilt.values()):
        assert 0 < score.chance < 0.5


def test_controls_can_look_clean_while_treated_wells_carry_the_batch():
    """A batch effect that acts on treated wells only: normalised to controls, and still there."""
    profiles = screen(num_batches=3, num_compounds=24, controls=24, signal=1.0)
    x = profiles.features.copy()
    treated = (profiles.metadata["Metadata_ControlType"] == "trt").to_numpy()
    for code, name in enumerate(["b0", "b1", "b2"]):
        mine = treated & (profiles.metadata["Metadata_Batch"] == name).to_numpy()
        x[mine] += numpy_generator(code, "hidden").normal(size=x.shape[1]) * 3
    names = ["domain-probe-controls", "domain-probe-treated"]
    found = evaluate_profiles(profiles.with_features(x), names)
    assert found["domain-probe-controls"].value < 0.55
    assert found["domain-probe-treated"].value > 0.95
    assert found["domain-probe-controls"].num == 72
    assert found["domain-probe-treated"].num == 72


def test_a_treatment_of_one_batch_is_not_learned_as_that_batch():
    """Every treatment lives in one batch: without held-out treatments the probe would know."""
    profiles = screen(num_batches=3, num_compounds=12, num_doses=4, signal=4.0, num_labels=12)
    meta = profiles.metadata
    number = meta["Metadata_Compound"].str[1:].replace("", "0").astype(int)
    own = (number % 3).astype(str) == meta["Metadata_Batch"].str[1:]
    local = profiles[own.to_numpy() | (meta["Metadata_ControlType"] == "negcon").to_numpy()]
    by_compound = Columns(treatment="Metadata_Compound")
    fair = PROFILE_METRICS["domain-probe-treated"](columns=by_compound)(local)
    naive = PROFILE_METRICS["domain-probe-treated"](columns=Columns(treatment=None))(local)
    assert naive.value > 0.95
    assert fair.value < 0.7


def test_labels_of_one_domain_are_left_out():
    profiles = screen(num_batches=2)
    label = profiles.metadata["Metadata_Label"].where(
        profiles.metadata["Metadata_Plate"] != "b0p0", "only here"
    )
    mixed = Profiles(
        features=profiles.features,
        names=profiles.names,
        metadata=profiles.metadata.assign(Metadata_Label=label),
    )
    for name in ("knn", "linear-probe"):
        score = PROFILE_METRICS[name]()(mixed)
        assert (score.value, score.num) == (None, 0)
        assert score.left_out == {"label in one domain only": 16}


@pytest.fixture(scope="module")
def cpjump():
    """Seven plates, normalised to their negative controls."""
    if not PLATES.is_dir():
        pytest.skip("no CPJUMP1 profiles beside the checkout")
    table = pd.concat(
        [pd.read_csv(path, low_memory=False) for path in sorted(PLATES.glob("BR*.csv.gz"))],
        ignore_index=True,
    )
    meta = [name for name in table if name.startswith("Metadata_")]
    features = [name for name in table if name not in meta]
    return Profiles(
        features=table[features].to_numpy(np.float64), names=tuple(features), metadata=table[meta]
    )


@pytest.mark.real
def test_cpjump1_looks_normalised_and_is_not(cpjump):
    columns = Columns(
        label="Metadata_broad_sample",
        treatment="Metadata_broad_sample",
        compound="Metadata_broad_sample",
        domain="Metadata_Plate",
        control="Metadata_control_type",
    )
    names = ["same-domain-neighbours", "knn", "domain-probe-controls"]
    found = evaluate_profiles(cpjump, names, columns)
    plate, compound = found["same-domain-neighbours"], found["knn"]
    assert plate.num == compound.num == 7 * 320
    assert round(plate.value, 2) == 0.41
    assert plate.chance == pytest.approx(1 / 7, abs=1e-3)
    assert round(compound.value, 2) == 0.49
    assert compound.chance < 0.01
    # The controls' medians are 0 on every plate, and a linear model still tells the plates apart.
    assert found["domain-probe-controls"].value > 0.8
    assert found["domain-probe-controls"].num == 7 * 64
