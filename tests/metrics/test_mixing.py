"""kBET, LISI, connectivity, silhouettes, PCR, clusters: ends, chance, formulas written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_cases import screen, with_column
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import silhouette_samples

from evenfield.errors import InputError
from evenfield.metrics import clusters
from evenfield.metrics.base import PROFILE_METRICS, evaluate_profiles
from evenfield.metrics.connectivity import largest_shares
from evenfield.metrics.kbet import kbet_p_values
from evenfield.metrics.kernels import similarity
from evenfield.metrics.kernels.nearest import Neighbours
from evenfield.metrics.lisi import gaussian_weights, lisi
from evenfield.metrics.pcr import explained, explained_by_component, pcr_comparison
from evenfield.metrics.silhouette import distance_sums, silhouettes
from evenfield.seeds import numpy_generator

BATCH = [
    "kbet",
    "ilisi",
    "silhouette-batch",
    "bras",
    "pcr-batch",
    "same-domain-neighbours",
    "domain-probe-treated",
]
BIOLOGY = ["clisi", "silhouette-label", "kmeans-nmi", "kmeans-ari", "graph-connectivity"]
OPTIONS = {"num_batches": 3, "num_compounds": 60, "num_labels": 3, "num_features": 30}


@pytest.fixture(scope="module")
def mixed():
    return screen(signal=2.0, batch=0.0, **OPTIONS)


@pytest.fixture(scope="module")
def separated():
    return screen(signal=2.0, batch=15.0, **OPTIONS)


def test_batch_metrics_hit_their_ends(mixed, separated):
    good, bad = (evaluate_profiles(p, BATCH) for p in (mixed, separated))
    assert bad["kbet"].value == 0
    assert good["kbet"].value > 0.85
    assert bad["ilisi"].value < 0.01
    assert good["ilisi"].value > 0.85
    assert bad["same-domain-neighbours"].value == 1
    assert bad["bras"].value < 0.25 < 0.9 < good["bras"].value
    assert bad["silhouette-batch"].value < 0.25 < 0.9 < good["silhouette-batch"].value
    assert bad["pcr-batch"].value > 0.9
    assert good["pcr-batch"].value < 0.03
    assert bad["domain-probe-treated"].value == 1
    for name in BATCH:
        # With mixed batches a metric is at its chance level: names say nothing about features.
        assert good[name].value == pytest.approx(good[name].chance, abs=0.12), name
        worse = np.sign(good[name].value - bad[name].value)
        assert worse == (1 if good[name].direction == "higher" else -1), name


def test_biology_metrics_hit_their_ends(mixed):
    noise = screen(signal=0.0, batch=0.0, **OPTIONS)
    good, bad = (evaluate_profiles(p, BIOLOGY) for p in (mixed, noise))
    assert good["kmeans-nmi"].value == good["kmeans-ari"].value == 1
    assert good["clisi"].value > 0.99
    assert good["graph-connectivity"].value > 0.97
    assert good["silhouette-label"].value > 0.75
    for name in BIOLOGY:
        assert bad[name].value == pytest.approx(bad[name].chance, abs=0.08), name


@pytest.mark.parametrize("name", [*BATCH, "same-domain-neighbours"])
def test_a_permuted_batch_sits_at_chance(name, separated):
    column = separated.metadata["Metadata_Batch"].to_numpy()
    order = numpy_generator(5, "permute").permutation(len(column))
    plain = with_column(separated, "Metadata_Batch", column[order])
    score = PROFILE_METRICS[name]()(with_column(plain, "Metadata_Treatment", "own"))
    if name == "domain-probe-treated":  # one treatment: nothing can be held out
        score = PROFILE_METRICS[name]()(plain)
    assert score.value == pytest.approx(score.chance, abs=0.12)


def test_kbet_within_labels_forgives_what_the_design_did():
    """Each label is in other shares of the batches: not a batch effect."""
    profiles = screen(signal=4.0, num_batches=2, num_compounds=80, num_labels=2)
    meta = profiles.metadata
    rng = numpy_generator(0, "design")
    first = (meta["Metadata_Label"] == "moa0") & (meta["Metadata_Batch"] == "b0")
    second = (meta["Metadata_Label"] == "moa1") & (meta["Metadata_Batch"] == "b1")
    drop = (first | second).to_numpy() & (rng.random(len(meta)) < 0.75)
    cls = PROFILE_METRICS["kbet"]
    confounded = profiles[~drop]
    whole = cls(cls.Config(k=20))(confounded)
    within = cls(cls.Config(k=20, within="label"))(confounded)
    assert whole.value < 0.5
    assert within.value > 0.85
    assert (within.unit, within.num) == ("label", 2)


def test_kbet_is_pearsons_test():
    share = np.array([0.5, 0.3, 0.2])
    counts = np.array([[12.0, 5.0, 3.0], [20.0, 0.0, 0.0], [10.0, 6.0, 4.0]])
    expected = [stats.chisquare(row, share * 20).pvalue for row in counts]
    np.testing.assert_allclose(kbet_p_values(counts, share), expected)


def test_kbet_says_when_batches_are_too_small_for_its_test(mixed):
    cls = PROFILE_METRICS["kbet"]
    assert any("below 5" in note for note in cls(cls.Config(k=6))(mixed).notes)
    assert not any("below 5" in note for note in cls(cls.Config(k=50))(mixed).notes)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e4), st.floats(0, 1e6))
def test_lisi_weights_have_the_asked_perplexity(seed, scale, shift):
    distance = np.sort(numpy_generator(seed, "lisi").random((4, 30)), axis=1) * scale
    weight = gaussian_weights(distance, 10.0)
    np.testing.assert_allclose(weight.sum(1), 1)
    entropy = -(weight * np.log(np.maximum(weight, 1e-300))).sum(1)
    np.testing.assert_allclose(entropy, np.log(10), atol=1e-4)
    if scale >= 1:
        moved = gaussian_weights(distance + shift, 10.0)
        np.testing.assert_allclose(moved, weight, atol=1e-3)


def test_lisi_counts_what_is_there():
    even = np.full((1, 12), 1 / 12)
    for num in (1, 2, 3, 4):
        code = np.arange(12)[None] % num
        assert lisi(even, code, 4) == pytest.approx(num)


def test_connectivity_by_hand_and_duplicates_are_joined():
    # 0 <-> 1, 2 <-> 3 of label 0; 4 <-> 5 of label 1; 0 and 1 are duplicates (distance 0).
    index = np.array([[1], [0], [3], [2], [5], [4]])
    found = Neighbours(index=index, distance=np.zeros((6, 1)))
    shares = largest_shares(found, np.array([0, 0, 0, 0, 1, 1]), 2)
    assert shares.tolist() == [0.5, 1.0]


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["euclidean", "cosine"]),
    st.sampled_from([32, 2**24]),
)
def test_silhouettes_equal_scikit_learn(seed, distance, block):
    rng = numpy_generator(seed, "silhouette")
    x, code = rng.normal(size=(40, 4)) + 2, rng.integers(0, 5, 40)
    code[:5] = np.arange(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "BLOCK_NUMBERS", block)
        sums = distance_sums(x, [code, code % 2], distance=distance)
    for total, names in zip(sums, (code, code % 2), strict=True):
        expected = silhouette_samples(x, names, metric=distance)
        np.testing.assert_allclose(silhouettes(total, names), expected, atol=1e-7)


def test_silhouette_of_batches_hides_a_pair_of_batches_that_lie_together():
    """Four batches in two heaps: within a heap they mix, and the nearest batch is as near."""
    profiles = screen(signal=1.0, num_batches=4, num_compounds=40, num_labels=2)
    shift = np.array([0, 0, 20, 20])[profiles.metadata["Metadata_Batch"].str[1:].astype(int)]
    found = evaluate_profiles(
        profiles.with_features(profiles.features + shift[:, None]), ["silhouette-batch", "bras"]
    )
    assert found["silhouette-batch"].value > 0.9
    assert found["bras"].value < 0.5


def test_explained_variance_needs_no_components():
    rng = numpy_generator(0, "pcr")
    x, code = rng.normal(size=(50, 8)) * np.arange(1, 9), np.arange(50) % 4
    x += rng.normal(size=(4, 8))[code] * 2
    model = PCA().fit(x)
    z = model.transform(x)
    onehot = np.eye(4)[code]
    r2 = [LinearRegression().fit(onehot, z[:, [i]]).score(onehot, z[:, [i]]) for i in range(8)]
    variance = model.explained_variance_ratio_
    assert explained(x, code) == pytest.approx(np.dot(variance, r2))
    for rows in (x, x[:6]):  # more rows than features, and fewer
        share, found = explained_by_component(rows, code[: len(rows)], 5)
        own = PCA().fit(rows)
        np.testing.assert_allclose(share, own.explained_variance_ratio_[: len(share)], atol=1e-12)
        part = own.transform(rows)[:, : len(found)]
        y = onehot[: len(rows)]
        expected = [LinearRegression().fit(y, c).score(y, c) for c in part.T]
        np.testing.assert_allclose(found, expected, atol=1e-9)
    with pytest.raises(InputError, match="no variance"):
        explained_by_component(np.ones((4, 2)), np.array([0, 0, 1, 1]), 1)


def test_a_correction_that_adds_batch_effect_does_not_look_harmless():
    rng = numpy_generator(1, "pcr")
    code = np.arange(60) % 3
    x = rng.normal(size=(60, 5))
    worse = x + code[:, None]
    assert pcr_comparison(worse, x, code) > 0.5
    assert pcr_comparison(x, worse, code) < 0


def test_leiden_says_what_it_needs(monkeypatch, mixed):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(clusters, "import_module", absent)
    with pytest.raises(InputError, match="igraph, which is not installed"):
        PROFILE_METRICS["leiden-nmi"]()(mixed)
    assert PROFILE_METRICS["kmeans-nmi"]()(mixed).value == 1


def test_leiden_finds_labels_where_igraph_is_there(mixed):
    pytest.importorskip("igraph", reason="igraph is not installed (it is GPL, and never required)")
    found = evaluate_profiles(mixed, ["leiden-nmi", "leiden-ari"])
    assert found["leiden-nmi"].value > 0.8
    again = evaluate_profiles(mixed, ["leiden-nmi"])
    assert again["leiden-nmi"].value == found["leiden-nmi"].value
    assert abs(found["leiden-ari"].chance) < 0.05
