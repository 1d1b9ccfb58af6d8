"""Against scib-metrics 0.5.10, to stated tolerances; and where it is wrong, a test that shows it.

It computes in float32 (jax), so equal means 1e-3 here; its neighbour lists hold the row itself.
"""

import numpy as np
import pytest
from profile_cases import screen

scib = pytest.importorskip("scib_metrics", reason="scib-metrics is not installed")
from scib_metrics.nearest_neighbors import NeighborsResults  # noqa: E402
from scib_metrics.utils import principal_component_regression  # noqa: E402

from evenfield.metrics.base import PROFILE_METRICS  # noqa: E402
from evenfield.metrics.connectivity import largest_shares  # noqa: E402
from evenfield.metrics.kbet import kbet_p_values  # noqa: E402
from evenfield.metrics.kernels.chance import neighbour_counts  # noqa: E402
from evenfield.metrics.kernels.nearest import nearest  # noqa: E402
from evenfield.metrics.kernels.view import make_view  # noqa: E402
from evenfield.metrics.lisi import gaussian_weights, lisi  # noqa: E402
from evenfield.metrics.pcr import explained, pcr_comparison  # noqa: E402
from evenfield.seeds import numpy_generator  # noqa: E402

CLOSE = 1e-3


@pytest.fixture(scope="module")
def table():
    """192 treated wells in four batches: features, label and batch names, the profiles."""
    profiles = screen(
        num_batches=4, num_compounds=48, num_labels=6, signal=0.6, batch=0.5, num_features=16
    )
    metric = PROFILE_METRICS["bras"]()
    view = make_view(
        profiles, metric.columns, rows="treated", unit="well", needs=("label", "domain")
    )
    return view.profiles.features, view.codes("label"), view.codes("domain"), profiles


def with_self(found):
    """Our neighbours as scib-metrics holds them: the row itself first, at distance 0."""
    num = len(found.index)
    return NeighborsResults(
        indices=np.c_[np.arange(num), found.index],
        distances=np.c_[np.zeros(num), found.distance].astype(np.float32),
    )


@pytest.mark.parametrize("role", ["label", "batch"])
def test_lisi(table, role):
    x, label, batch, _ = table
    code = label if role == "label" else batch
    found = nearest(x, 89, distance="euclidean")
    weight = gaussian_weights(found.distance, 30.0)
    ours = lisi(weight, code[found.index], code.max() + 1)
    theirs = scib.lisi_knn(with_self(found), code, perplexity=30)
    np.testing.assert_allclose(ours, theirs, rtol=5e-3)
    scaled = (np.median(ours) - 1) / code.max()
    if role == "batch":
        assert scaled == pytest.approx(scib.ilisi_knn(with_self(found), code), abs=CLOSE)
    else:
        assert 1 - scaled == pytest.approx(scib.clisi_knn(with_self(found), code), abs=CLOSE)


def test_lisi_there_is_too_high_with_many_features():
    """Distances are large and alike: exp(-beta d) is 0 in float32 before beta is large enough."""
    rng = numpy_generator(0, "many features")
    x, batch = rng.normal(size=(192, 4000)), np.arange(192) % 4
    found = nearest(x, 89, distance="euclidean")
    weight = gaussian_weights(found.distance, 10.0)
    entropy = -(weight * np.log(weight)).sum(1)
    np.testing.assert_allclose(np.exp(entropy), 10, rtol=1e-3)  # as asked
    ours = lisi(weight, batch[found.index], 4)
    theirs = scib.lisi_knn(with_self(found), batch, perplexity=10)
    assert np.median(theirs) > np.median(ours) + 0.2


def test_kbet(table):
    x, _, batch, _ = table
    found = nearest(x, 49, distance="euclidean")
    theirs = scib.kbet(with_self(found), batch)
    index = np.c_[np.arange(len(x)), found.index]
    share = np.bincount(batch) / len(batch)
    ours = kbet_p_values(neighbour_counts(batch[index], 4), share)
    np.testing.assert_allclose(ours, theirs[2], atol=CLOSE)
    assert (ours >= 0.05).mean() == pytest.approx(theirs[0], abs=0.01)


def test_kbet_there_rejects_small_batches_by_counting_the_profile_itself():
    """Random names; two batches of 2 % each."""
    x = numpy_generator(1, "kbet").normal(size=(4000, 6))
    batch = np.r_[np.zeros(3840, int), np.ones(80, int), np.full(80, 2)]
    found = nearest(x, 49, distance="euclidean")
    share = np.bincount(batch) / len(batch)
    ours = kbet_p_values(neighbour_counts(batch[found.index], 3), share) < 0.05
    theirs = scib.kbet(with_self(found), batch)[2] < 0.05
    assert theirs[batch > 0].mean() > 1.4 * ours[batch > 0].mean() > 0
    assert theirs[batch == 0].mean() == pytest.approx(ours[batch == 0].mean(), abs=0.02)


def test_graph_connectivity(table):
    x, label, _, _ = table
    found = nearest(x, 14, distance="euclidean")
    ours = largest_shares(found, label, 6).mean()
    assert ours == pytest.approx(scib.graph_connectivity(with_self(found), label), abs=1e-9)


def test_silhouettes(table):
    x, label, batch, profiles = table
    for name, distance, theirs in (
        ("silhouette-label", "euclidean", scib.silhouette_label(x, label)),
        ("silhouette-label", "cosine", scib.silhouette_label(x, label, metric="cosine")),
        ("silhouette-batch", "euclidean", scib.silhouette_batch(x, label, batch)),
        ("bras", "cosine", scib.bras(x, label, batch)),
    ):
        cls = PROFILE_METRICS[name]
        ours = cls(cls.Config(distance=distance))(profiles)
        assert ours.value == pytest.approx(theirs, abs=CLOSE), name


def test_principal_component_regression(table):
    x, _, batch, _ = table
    theirs = principal_component_regression(x, batch, categorical=True)
    assert explained(x, batch) == pytest.approx(theirs, abs=CLOSE)
    better = x - np.stack([x[batch == code].mean(0) for code in range(4)])[batch] * 0.8
    theirs = scib.pcr_comparison(x, better, batch, categorical=True)
    assert pcr_comparison(x, better, batch) == pytest.approx(theirs, abs=CLOSE)
    with pytest.warns(UserWarning, match="negative"):
        assert scib.pcr_comparison(better, x, batch, categorical=True) == 0
    assert pcr_comparison(better, x, batch) < 0
