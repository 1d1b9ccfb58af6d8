"""Average precision and its null: laws, formula written out, traps."""

import itertools
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_cases import screen, shuffled_rows, with_column
from scipy import stats
from sklearn.metrics import average_precision_score

from evenfield.errors import EvenfieldWarning, InputError
from evenfield.metrics.base import PROFILE_METRICS, evaluate_profiles
from evenfield.metrics.kernels import retrieval, similarity
from evenfield.metrics.kernels.retrieval import expected_ap, random_ap
from evenfield.metrics.kernels.view import Columns
from evenfield.metrics.map import Question, average_precision, mean_average_precision
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles

T, P, B = "Metadata_Treatment", "Metadata_Plate", "Metadata_Batch"
EVERYBODY = Question(pos_sameby=(T,), neg_diffby=(T,))
levels = st.lists(st.integers(0, 5), min_size=1, max_size=12)


@settings(deadline=None, max_examples=100)
@given(levels, levels)
def test_one_query_equals_scikit_learn_ties_included(positives, negatives):
    found = retrieval.average_precision(np.array(positives) / 7, np.array(negatives) / 7)
    truth = np.repeat([1, 0], [len(positives), len(negatives)])
    assert found == pytest.approx(average_precision_score(truth, positives + negatives), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(levels, levels)
def test_only_ranks_count(positives, negatives):
    a, b = np.array(positives, float), np.array(negatives, float)
    value = retrieval.average_precision(a, b)
    for change in (lambda s: s - 100, lambda s: s**3 / 9, np.expm1):
        assert retrieval.average_precision(change(a), change(b)) == value


def by_pairs(profiles, question):
    """Every pair looked at, one by one; no ties are expected."""
    x = profiles.features / np.linalg.norm(profiles.features, axis=1, keepdims=True)
    meta = profiles.metadata

    def pair(i, j, same, differ):
        both = [(meta[name][i], meta[name][j]) for name in (*same, *differ)]
        if i == j or any(value in (None, "") for two in both for value in two):
            return False
        agree = all(a == b for a, b in both[: len(same)])
        return agree and all(a != b for a, b in both[len(same) :])

    value, counts = [], []
    for i in range(len(x)):
        positives = [
            j for j in range(len(x)) if pair(i, j, question.pos_sameby, question.pos_diffby)
        ]
        negatives = [
            j for j in range(len(x)) if pair(i, j, question.neg_sameby, question.neg_diffby)
        ]
        ranking = sorted(positives + negatives, key=lambda j: -(x[i] @ x[j]))
        hits = [rank + 1 for rank, j in enumerate(ranking) if j in positives]
        precisions = [(number + 1) / rank for number, rank in enumerate(hits)]
        value.append(np.mean(precisions) if positives and negatives else np.nan)
        counts.append((len(positives), len(positives) + len(negatives)))
    return np.array(value), np.array(counts)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 10**6),
    st.integers(5, 24),
    st.sampled_from(
        [
            ((T,), (), (), (T,)),
            ((T,), (P,), (), (T,)),
            ((T,), (), (P,), (T,)),
            ((T,), (P, B), (B,), (T,)),
            ((T, B), (P,), (P, B), (T,)),
            ((), (T, P), (T,), ()),
        ]
    ),
    st.sampled_from([8, 64, 2**24]),
)
def test_every_question_equals_a_double_loop(seed, num, columns, block):
    rng = numpy_generator(seed, "table")
    meta = pd.DataFrame(
        {
            T: rng.choice([*"abcd", ""], num),
            P: rng.choice([*"xyz", None], num),
            B: rng.choice([*"uv"], num),
        }
    )
    profiles = Profiles(features=rng.normal(size=(num, 6)), names=(*"abcdef",), metadata=meta)
    question = Question(
        pos_sameby=columns[0], pos_diffby=columns[1], neg_sameby=columns[2], neg_diffby=columns[3]
    )
    value, counts = by_pairs(profiles, question)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", EvenfieldWarning)
        patch.setattr(similarity, "BLOCK_NUMBERS", block)  # one row at a time, or all at once
        found = average_precision(profiles, question)
    np.testing.assert_array_equal(found[["n_pos_pairs", "n_total_pairs"]].to_numpy(), counts)
    np.testing.assert_allclose(found["average_precision"], value, atol=1e-12)


def test_ties_of_repeated_and_rescaled_rows_do_not_see_the_order_of_rows():
    rng = numpy_generator(3, "ties")
    base = rng.normal(size=(6, 5))
    features = base[rng.integers(6, size=40)] * rng.integers(1, 9, size=(40, 1))
    meta = pd.DataFrame({T: rng.choice([*"abc"], 40), P: rng.choice([*"xy"], 40)})
    profiles = Profiles(features=features, names=(*"abcde",), metadata=meta)
    for precision in ("double", "single"):
        whole = profiles if precision == "double" else replace(profiles, features=base[[0] * 40])
        first = average_precision(whole, EVERYBODY, precision=precision)
        order = rng.permutation(40)
        second = average_precision(whole[order], EVERYBODY, precision=precision)
        np.testing.assert_allclose(
            first["average_precision"].to_numpy()[order], second["average_precision"], atol=1e-14
        )
    # All alike: the share of positives, whatever the order.
    num_pos, total = first["n_pos_pairs"], first["n_total_pairs"]
    np.testing.assert_allclose(first["average_precision"], num_pos / total)


def test_the_order_of_rows_does_not_change_a_bit_in_float32():
    profiles = screen(num_batches=4, num_features=50)
    order = numpy_generator(1, "order").permutation(len(profiles))
    question = Question(pos_sameby=(T,), pos_diffby=(P,), neg_sameby=(P,), neg_diffby=(T,))
    a = average_precision(profiles, question, precision="single")["average_precision"]
    b = average_precision(profiles[order], question, precision="single")["average_precision"]
    np.testing.assert_array_equal(a.to_numpy()[order], b)


def test_float32_is_near_float64():
    profiles = screen(num_batches=6, num_features=200, signal=0.3)
    single, double = (
        average_precision(profiles, EVERYBODY, precision=name)["average_precision"]
        for name in ("single", "double")
    )
    assert np.nanmax(np.abs(single - double)) < 1e-3  # near ties change places, no more


def test_memory_stays_far_below_the_table_of_all_pairs(monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK_NUMBERS", 2**17)
    num = 4000
    rng = numpy_generator(0, "memory")
    meta = pd.DataFrame({T: (np.arange(num) // 4).astype(str)})
    names = tuple(map(str, range(8)))
    profiles = Profiles(features=rng.normal(size=(num, 8)), names=names, metadata=meta)
    tracemalloc.start()
    average_precision(profiles, EVERYBODY, precision="single")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * num * num / 5


def test_queries_without_positives_or_negatives_are_left_out_and_counted():
    meta = pd.DataFrame({T: ["a", "a", "b", "c", "c"], P: ["x", "x", "y", "z", "z"]})
    features = numpy_generator(0, "few").normal(size=(5, 3))
    profiles = Profiles(features=features, names=(*"abc",), metadata=meta)
    question = Question(pos_sameby=(T,), neg_sameby=(P,), neg_diffby=(T,))
    with pytest.warns(EvenfieldWarning, match="4 of 5 queries"):
        found = average_precision(profiles, question)
    assert found["average_precision"].isna().all()
    with pytest.raises(InputError, match="no query has a positive and a negative"):
        mean_average_precision(found, [T])
    wells = meta.assign(
        **{P: ["x", "x", "x", "z", "z"], "Metadata_Well": ["A01", "A02", "A03", "A01", "A02"]}
    )
    metric = PROFILE_METRICS["map-replicability"](columns=Columns(control=None))
    score = metric(replace(profiles, metadata=wells))
    assert score.num == 1
    assert dict(score.left_out) == {"no positive pair": 1, "no negative pair": 2}


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (Question(pos_sameby=(T,), neg_sameby=(T,)), "positive and a negative pair at once"),
        (Question(pos_sameby=("Metadata_Gene",), neg_diffby=(T,)), "no column Metadata_Gene"),
        (Question(pos_sameby=(T,)), "no column defines them"),
        (Question(pos_sameby=(T,), pos_diffby=(T,), neg_diffby=(T,)), "named twice"),
    ],
)
def test_questions_that_make_no_sense(question, words):
    with pytest.raises(InputError, match=words):
        average_precision(screen(), question)


def test_zero_vector_has_no_cosine():
    profiles = screen()
    features = profiles.features.copy()
    features[3] = 0
    with pytest.raises(InputError, match="row 3"):
        average_precision(profiles.with_features(features), EVERYBODY)


def rankings(num_pos, num_neg):
    """Average precision of every possible ranking."""
    places = itertools.combinations(range(1, num_pos + num_neg + 1), num_pos)
    return np.array([np.mean([(i + 1) / rank for i, rank in enumerate(p)]) for p in places])


@pytest.mark.parametrize(("num_pos", "num_neg"), [(1, 1), (1, 16), (2, 3), (3, 4), (5, 2)])
def test_null_is_the_distribution_over_all_rankings(num_pos, num_neg):
    exact = rankings(num_pos, num_neg)
    assert expected_ap(np.array(num_pos), np.array(num_neg)) == pytest.approx(exact.mean())
    drawn = random_ap(num_pos, num_neg, 20_000, numpy_generator(0, "null"))
    values, expected = np.unique(exact.round(9), return_counts=True)
    seen = np.array([(drawn.round(9) == value).sum() for value in values])
    assert seen.sum() == len(drawn)  # nothing that no ranking can give
    assert stats.chisquare(seen, expected / expected.sum() * len(drawn)).pvalue > 1e-4


def test_null_of_many_positives_has_the_right_mean():
    drawn = random_ap(300, 5000, 400, numpy_generator(0, "null"))
    standard_error = drawn.std() / np.sqrt(len(drawn))
    assert abs(drawn.mean() - expected_ap(np.array(300), np.array(5000))) < 4 * standard_error


def perfect_pair():
    """Two replicates that find each other before 16 controls, each."""
    value = {T: ["a", "a"], "n_pos_pairs": 1, "n_total_pairs": 17, "average_precision": 1.0}
    return pd.DataFrame(value | {"normalized_average_precision": 1.0})


def test_a_perfect_score_that_chance_reaches_often_is_not_significant():
    settings_ = {"null_size": 1000, "threshold": 0.05}
    new = mean_average_precision(perfect_pair(), [T], **settings_)
    assert new["p_value"].item() == pytest.approx(1 / 17, abs=0.02)
    old = mean_average_precision(perfect_pair(), [T], rule="copairs-0.5.5", **settings_)
    assert old["p_value"].item() == pytest.approx(1 / 1001)


def test_same_seed_same_p_whatever_ran_before():
    profiles = screen(signal=0.5)
    table = average_precision(profiles, EVERYBODY)
    first = mean_average_precision(table, [T], seed=4)
    mean_average_precision(average_precision(screen(num_batches=5), EVERYBODY), [T], seed=4)
    part = table[table[T].isin(["c00@0", "c05@0"])]
    alone = mean_average_precision(part, [T], seed=4)
    again = mean_average_precision(table.iloc[::-1], [T], seed=4)
    pd.testing.assert_frame_equal(first, again)
    assert first.set_index(T).loc[alone[T], "p_value"].tolist() == alone["p_value"].tolist()
    other = mean_average_precision(table, [T], seed=5)
    assert (other["p_value"] != first["p_value"]).any()


def test_p_values_of_noise_are_uniform_enough():
    profiles = screen(signal=0.0, num_compounds=60, num_batches=4, num_features=40)
    table = average_precision(profiles[:], EVERYBODY)
    p = mean_average_precision(table[table[T] != ""], [T], null_size=2000)["p_value"]
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert not (p < 1e-3).any()


def test_a_null_too_small_for_the_correction_warns_with_the_size_needed():
    table = average_precision(screen(), EVERYBODY)
    table = table[table[T] != ""]
    with pytest.warns(EvenfieldWarning, match="at least 159"):
        mean_average_precision(table, [T], null_size=100)
    enough = mean_average_precision(table, [T], null_size=159)
    assert len(enough) == 8
    # At that size a lone hit just passes: smallest p times the number of groups.
    assert 8 / 160 <= 0.05


def test_activity_asks_for_controls_of_the_own_plate():
    """Inactive treatments with four wells on one plate each, and a strong plate effect."""
    profiles = screen(signal=0.0, batch=8.0, num_batches=4, num_doses=4, controls=12)
    meta = profiles.metadata
    is_control = (meta["Metadata_ControlType"] == "negcon").to_numpy()
    local = with_column(profiles, T, meta["Metadata_Compound"] + meta[P])
    score = PROFILE_METRICS["map-activity"]()(local)
    assert score.value == pytest.approx(score.chance, abs=0.08)
    # What goes wrong otherwise: controls of other plates lie far away, at the end of the ranking.
    # The precision stays, but chance falls with every further control: it looks like activity.
    marked = with_column(local, "Metadata_IsControl", is_control)
    pooled = Question(pos_sameby=(T, "Metadata_IsControl"), neg_diffby=("Metadata_IsControl",))
    table = average_precision(marked, pooled, queries=~is_control)
    wrong = mean_average_precision(table, [T])
    assert score.items["mean_normalized_average_precision"].mean() < 0.1
    assert wrong["mean_normalized_average_precision"].mean() > 0.2
    assert wrong["p_value"].mean() < score.items["p_value"].mean() - 0.15
    assert wrong["below_p"].mean() > score.items["below_p"].mean() + 0.15
    # Further plates of other treatments add controls, and change nothing.
    extra = screen(seed=9, batch=8.0)
    more = extra.metadata.assign(**{P: "x" + extra.metadata[P], T: "x" + extra.metadata[T]})
    both = Profiles(
        features=np.concatenate([profiles.features, extra.features]),
        names=profiles.names,
        metadata=pd.concat([local.metadata, more], ignore_index=True),
    )
    found = score.items.set_index(T)["score"]
    again = PROFILE_METRICS["map-activity"]()(both).items.set_index(T)["score"]
    np.testing.assert_allclose(again[found.index], found)


def test_consistency_counts_treatments_not_wells():
    profiles = screen(num_batches=2, plates_per_batch=2, signal=1.0)
    metric = PROFILE_METRICS["map-consistency"]()
    once = metric(profiles)
    many = profiles.metadata[T].isin(["c00@0", "c01@0"]).to_numpy()
    copies = profiles[np.flatnonzero(many)]
    meta = copies.metadata.assign(Metadata_Plate="copy " + copies.metadata[P])
    both = Profiles(
        features=np.concatenate([profiles.features, copies.features]),
        names=profiles.names,
        metadata=pd.concat([profiles.metadata, meta], ignore_index=True),
    )
    twice = metric(both)
    assert (twice.value, twice.num) == (once.value, once.num) == (pytest.approx(once.value), 4)
    assert once.unit == "label"


def test_partners_in_other_wells_only_leaves_nothing_and_says_so():
    """Target-2 plates hold a compound in the same well on every plate."""
    profiles = screen()
    question = Question(pos_sameby=(T,), pos_diffby=("Metadata_Well",), neg_diffby=(T,))
    found = average_precision(profiles, question)
    assert found["average_precision"].isna().all()
    with pytest.raises(InputError, match="same well of every"):
        mean_average_precision(found, [T])


def test_one_batch_only_gives_no_score_across_batches():
    score = PROFILE_METRICS["map-across-domains"]()(screen(num_batches=1))
    assert (score.value, score.chance, score.num) == (None, None, 0)
    assert score.left_out == {"no positive pair": 8}


def test_nearest_mechanisms_can_be_perfect_where_replicates_do_not_meet_across_batches():
    spoilt = screen(num_batches=4, batch=10.0, num_features=40, num_doses=4, noise=0.7)
    features = spoilt.features.copy()
    for name in spoilt.metadata[B].unique():
        mine = (spoilt.metadata[B] == name).to_numpy()
        control = mine & (spoilt.metadata["Metadata_ControlType"] == "negcon").to_numpy()
        features[mine] -= features[control].mean(0)
    before, after = (
        evaluate_profiles(p, ("nsc", "map-across-domains"))
        for p in (spoilt, spoilt.with_features(features))
    )
    assert before["nsc"].value == 1
    assert before["map-across-domains"].value < 0.35
    assert after["map-across-domains"].value > before["map-across-domains"].value + 0.15


def test_shuffled_rows_give_the_same_tables():
    profiles = screen(signal=0.7)
    for name in ("map-activity", "map-replicability", "map-across-domains", "map-consistency"):
        metric = PROFILE_METRICS[name]()
        a, b = metric(profiles), metric(shuffled_rows(profiles))
        assert (a.value, a.chance, a.num) == (b.value, b.chance, b.num)
        pd.testing.assert_frame_equal(a.items, b.items)
