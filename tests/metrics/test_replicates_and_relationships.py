"""Percent replicating and matching, recall of known relationships."""

import numpy as np
import pandas as pd
import pytest
from profile_cases import screen, with_column

from evenfield.errors import InputError
from evenfield.metrics.base import PROFILE_METRICS
from evenfield.metrics.kernels.view import Columns, consensus
from evenfield.metrics.relationships import cosines, pairs_of_sets, tails
from evenfield.metrics.replicates import pair_correlations, unlike_groups
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles


def test_pair_correlations_are_pearsons():
    x = numpy_generator(0, "pearson").normal(size=(6, 9)) + 4
    unit = x - x.mean(1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found = pair_correlations(unit, np.array([[0, 2, 5], [1, 3, 4]]))
    r = np.corrcoef(x)
    np.testing.assert_allclose(
        found, [[r[0, 2], r[0, 5], r[2, 5]], [r[1, 3], r[1, 4], r[3, 4]]], atol=1e-6
    )


def test_unlike_groups_are_unlike_and_of_the_same_size():
    code = np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 7])
    rows = unlike_groups(code, 4, 500, numpy_generator(0, "groups"))
    assert rows.shape == (500, 4)
    assert all(len(set(code[group])) == 4 for group in rows)
    # Every name is drawn equally often, however many rows it has.
    share = np.bincount(code[rows.ravel()]) / rows.size
    np.testing.assert_allclose(share, 1 / 7, atol=0.03)
    with pytest.raises(InputError, match="needs 9 different names"):
        unlike_groups(code, 9, 3, numpy_generator(0, "groups"))


@pytest.mark.parametrize("name", ["percent-replicating", "percent-matching"])
def test_strong_signal_replicates_and_noise_is_at_chance(name):
    metric = PROFILE_METRICS[name]()
    options = {"num_batches": 4, "num_compounds": 60, "num_labels": 20, "num_features": 60}
    strong = metric(screen(signal=4.0, **options))
    assert strong.value > 0.95
    assert strong.chance == pytest.approx(0.05)
    noise = metric(screen(signal=0.0, **options))
    assert noise.value <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / noise.num)


def test_median_and_threshold_by_hand():
    profiles = screen(num_batches=3, num_compounds=12, signal=0.5)
    score = PROFILE_METRICS["percent-replicating"]()(profiles)
    treated = profiles[(profiles.metadata["Metadata_ControlType"] == "trt").to_numpy()]
    r = np.corrcoef(treated.features)
    name = treated.metadata["Metadata_Treatment"].to_numpy()
    medians = {
        one: np.median(r[np.ix_(name == one, name == one)][np.triu_indices(3, 1)])
        for one in np.unique(name)
    }
    found = score.items.set_index("Metadata_Treatment")
    np.testing.assert_allclose(found["median"], [medians[key] for key in found.index], atol=1e-6)
    # Groups of three unlike wells: the exact null over all of them, by brute force.
    order = np.argsort(name, kind="stable")
    exact = [
        np.median([r[a, b], r[a, c], r[b, c]])
        for i, a in enumerate(order)
        for j, b in enumerate(order[i + 1 :], i + 1)
        for c in order[j + 1 :]
        if len({name[a], name[b], name[c]}) == 3
    ]
    limit = found["null_quantile"].unique()
    assert len(limit) == 1
    assert limit[0] == pytest.approx(np.quantile(exact, 0.95), abs=0.05)
    assert score.value == (found["median"] > limit[0]).mean()


def test_smaller_groups_have_a_wider_null():
    profiles = screen(num_batches=6, num_compounds=20, signal=0.0, num_features=15)
    keep = np.ones(len(profiles), bool)
    small = profiles.metadata["Metadata_Treatment"].isin([f"c{i:02d}@0" for i in range(10)])
    keep[small & (profiles.metadata["Metadata_Batch"] > "b1")] = False
    items = PROFILE_METRICS["percent-replicating"]()(profiles[keep]).items
    limits = items.groupby(items["Metadata_Treatment"] < "c10")["null_quantile"].unique()
    assert limits[True][0] > limits[False][0] + 0.1  # groups of two against groups of six


def test_single_wells_are_left_out_and_counted():
    score = PROFILE_METRICS["percent-replicating"]()(screen(num_batches=1))
    assert (score.value, score.num) == (None, 0)
    assert score.left_out == {"treatment without a pair": 8}


def test_matching_ignores_doses_of_one_compound():
    """Doses of a compound are alike; compounds of a label are not."""
    profiles = screen(num_batches=2, num_compounds=24, num_labels=24, num_doses=3, signal=3.0)
    meta = profiles.metadata
    label = "moa" + (meta["Metadata_Compound"].str[1:].replace("", "0").astype(int) % 12).astype(
        str
    )
    score = PROFILE_METRICS["percent-matching"]()(with_column(profiles, "Metadata_Label", label))
    assert score.num == 12
    assert score.value < 0.4
    own = PROFILE_METRICS["percent-matching"]()(profiles)
    assert own.left_out == {"label without a pair": 24}


def entities(seed=0, num=80, sets=20, strength=2.0):
    """Complexes of genes whose profiles are alike."""
    rng = numpy_generator(seed, "entities")
    group = np.arange(num) % sets
    x = rng.normal(size=(sets, 30))[group] * strength + rng.normal(size=(num, 30))
    meta = pd.DataFrame({"Metadata_Treatment": [f"g{i:03d}" for i in range(num)]})
    meta["Metadata_Compound"] = meta["Metadata_Treatment"]
    known = pairs_of_sets(
        {str(s): meta["Metadata_Compound"][group == s].tolist() for s in range(sets)}
    )
    names = tuple(f"f{i}" for i in range(30))
    return Profiles(features=x, names=names, metadata=meta), known


def recall(profiles, known, **options):
    cls = PROFILE_METRICS["relationship-recall"]
    return cls(cls.Config(pairs=known, **options), columns=Columns(control=None))(profiles)


def test_recall_finds_what_is_there_and_noise_is_at_chance():
    score = recall(*entities())
    assert score.value > 0.9
    assert score.chance == pytest.approx(0.1, abs=0.01)
    assert score.also["members with anyone"][0] < 0.2
    assert score.num == 20 * 6
    noise = recall(*entities(strength=0.0))
    assert abs(noise.value - noise.chance) < 0.12
    assert "p = " in noise.notes[0]


def test_an_entity_that_is_like_all_others_is_no_relationship():
    """One gene in every known pair, and like everything by a common direction."""
    profiles, _ = entities(strength=0.0, num=60)
    x = profiles.features + 0.5
    x[0] = 5 + x[0]
    hub = profiles.with_features(x)
    known = tuple(("g000", f"g{j:03d}") for j in range(1, 40))
    score = recall(hub, known)
    # Four times the chance level, and significant by permuted names ...
    assert score.value > 0.4 > 3 * score.chance
    assert float(score.notes[0].split()[2]) < 0.05
    # ... but the hub is in the tails with just anyone (half of the weight is its partners').
    assert score.also["members with anyone"][0] > 0.2
    real = recall(*entities())
    assert real.also["members with anyone"][0] < 0.15 < 0.9 < real.value


def test_recall_joins_by_name():
    profiles, known = entities()
    order = numpy_generator(2, "order").permutation(len(profiles))
    more = (*known, ("g000", "nobody"), ("g005", "g005"))
    a, b = recall(profiles, known), recall(profiles[order], more)
    assert (a.value, a.num) == (b.value, b.num)
    assert b.left_out == {"pair with a name that is not in the table": 1}


def test_recall_refuses_few_names_and_no_pairs():
    profiles, known = entities(num=19, sets=3)
    score = recall(profiles, known)
    assert score.value is None
    assert "at least 20" in score.notes[0]
    with pytest.raises(InputError, match="no known pairs"):
        recall(profiles, ())


def test_tails_of_a_sample_are_near_those_of_all_pairs(monkeypatch):
    from evenfield.metrics import relationships

    unit = numpy_generator(0, "tails").normal(size=(400, 8))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    a, b = np.triu_indices(400, 1)
    np.testing.assert_allclose(cosines(unit, a, b), (unit @ unit.T)[a, b], atol=1e-12)
    exact = tails(unit, 5, numpy_generator(0, "a"))
    np.testing.assert_allclose(exact, np.percentile((unit @ unit.T)[a, b], [5, 95]))
    monkeypatch.setattr(relationships, "PAIRS_FOR_QUANTILES", 20_000)
    np.testing.assert_allclose(tails(unit, 5, numpy_generator(0, "a")), exact, atol=0.02)


def test_consensus_keeps_what_is_constant_and_counts():
    profiles = screen(num_batches=3)
    whole = consensus(profiles, ["Metadata_ControlType"])
    assert whole.metadata["Metadata_Count"].tolist() == [18, 24]
    assert "Metadata_Compound" not in whole.metadata
    treated = profiles[(profiles.metadata["Metadata_ControlType"] == "trt").to_numpy()]
    each = consensus(treated, ["Metadata_Treatment"])
    assert "Metadata_Label" in each.metadata
    assert "Metadata_Plate" not in each.metadata
    for row, name in enumerate(each.metadata["Metadata_Treatment"]):
        mine = (treated.metadata["Metadata_Treatment"] == name).to_numpy()
        np.testing.assert_array_equal(each.features[row], np.median(treated.features[mine], 0))
    means = consensus(treated, ["Metadata_Treatment"], mean=True)
    assert not np.allclose(means.features, each.features)
    with pytest.raises(InputError, match="18 rows have no Metadata_Treatment"):
        consensus(profiles, ["Metadata_Treatment"])
    with pytest.raises(InputError, match="no column Metadata_Gene"):
        consensus(profiles, ["Metadata_Gene"])
