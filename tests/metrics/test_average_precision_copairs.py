"""Against copairs 0.5.5: equal where it is right, and a test where it is not."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from profile_cases import screen

from evenfield.errors import EvenfieldWarning
from evenfield.metrics.map import Question, average_precision, mean_average_precision
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles

oracle = pytest.importorskip("copairs.map", reason="copairs is not installed")
T, P, B, L = "Metadata_Treatment", "Metadata_Plate", "Metadata_Batch", "Metadata_Label"
PLATES = Path(__file__).parents[2].parent / "shared" / "data" / "cpjump1_profiles"
QUESTIONS = {
    "replicates": Question(pos_sameby=(T,), neg_diffby=(T,)),
    "same plate": Question(pos_sameby=(T,), neg_sameby=(P,), neg_diffby=(T,)),
    "other batches": Question(pos_sameby=(T,), pos_diffby=(B,), neg_diffby=(T,)),
    "other treatments": Question(pos_sameby=(L,), pos_diffby=(T,), neg_diffby=(L,)),
    "two columns": Question(pos_sameby=(T, B), pos_diffby=(P,), neg_sameby=(B,), neg_diffby=(T,)),
}


def treated(**options):
    profiles = screen(**options)
    return profiles[(profiles.metadata["Metadata_ControlType"] == "trt").to_numpy()]


def theirs(profiles, question):
    columns = {name: list(getattr(question, name)) for name in question.__slots__}
    return oracle.average_precision(
        profiles.metadata, profiles.features, **columns, progress_bar=False
    )


@pytest.mark.parametrize("name", QUESTIONS)
def test_average_precision_is_equal(name):
    profiles = treated(num_batches=3, plates_per_batch=2, signal=0.5, batch=0.5, num_features=30)
    question = QUESTIONS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvenfieldWarning)
        ours = average_precision(profiles, question)
    reference = theirs(profiles, question)
    for column in ("n_pos_pairs", "n_total_pairs"):
        np.testing.assert_array_equal(ours[column], reference[column])
    for column in ("average_precision", "normalized_average_precision"):
        np.testing.assert_allclose(ours[column], reference[column], atol=1e-6)


def test_p_and_q_are_equal_by_the_old_rule_with_equal_nulls(tmp_path):
    profiles = treated(num_batches=4, signal=0.3, batch=0.5, num_compounds=30)
    table = theirs(profiles, QUESTIONS["other batches"])
    options = {"null_size": 2000, "threshold": 0.05, "seed": 3}
    reference = oracle.mean_average_precision(
        table, [T], **options, progress_bar=False, cache_dir=tmp_path
    )
    nulls = {}
    for path in (tmp_path / "seed3" / "ns2000").glob("*.npy"):
        total, positives = (int(part[1:]) for part in path.stem.split("_"))
        nulls[positives, total - positives] = np.load(path)
    assert nulls
    ours = mean_average_precision(table, [T], rule="copairs-0.5.5", nulls=nulls, **options)
    reference = reference.sort_values(T).reset_index(drop=True)
    for column in (
        "mean_average_precision",
        "mean_normalized_average_precision",
        "p_value",
        "corrected_p_value",
    ):
        np.testing.assert_allclose(ours[column], reference[column], atol=1e-6, err_msg=column)
    np.testing.assert_array_equal(ours["below_corrected_p"], reference["below_corrected_p"])
    # With draws of our own p differs by the noise of 2,000 draws, and by ties that now count.
    own = mean_average_precision(table, [T], **options)
    assert np.abs(own["p_value"] - ours["p_value"]).max() < 4 * np.sqrt(0.25 / 2000) + 0.02


def test_our_table_is_read_by_copairs_unchanged(tmp_path):
    profiles = treated(signal=0.5)
    table = average_precision(profiles, QUESTIONS["replicates"])
    found = oracle.mean_average_precision(
        table, [T], null_size=200, threshold=0.05, seed=0, progress_bar=False, cache_dir=tmp_path
    )
    ours = mean_average_precision(table, [T], null_size=200)
    np.testing.assert_allclose(
        found.sort_values(T)["mean_average_precision"], ours["mean_average_precision"]
    )


def test_there_a_perfect_score_is_significant_though_chance_reaches_it(tmp_path):
    value = {T: ["a", "a"], "n_pos_pairs": 1, "n_total_pairs": 17, "average_precision": 1.0}
    table = pd.DataFrame(value | {"normalized_average_precision": 1.0})
    options = {"null_size": 1000, "threshold": 0.05, "seed": 0}
    found = oracle.mean_average_precision(
        table, [T], **options, progress_bar=False, cache_dir=tmp_path
    )
    assert found["p_value"].item() == pytest.approx(0.000999, abs=1e-6)
    assert mean_average_precision(table, [T], **options)["p_value"].item() > 0.03


def test_there_a_query_without_negatives_is_perfect():
    meta = pd.DataFrame({T: [*"aabbc"], P: [*"xxyyy"]})
    features = numpy_generator(0, "alone").normal(size=(5, 3))
    profiles = Profiles(features=features, names=(*"abc",), metadata=meta)
    question = Question(pos_sameby=(T,), neg_sameby=(P,), neg_diffby=(T,))
    assert theirs(profiles, question)["average_precision"][0] == 1
    with pytest.warns(EvenfieldWarning, match="no negative pairs"):
        ours = average_precision(profiles, question)
    assert ours["average_precision"].isna().tolist() == [True, True, False, False, True]


def test_there_features_that_say_nothing_are_perfect():
    """Positives are written first, and a stable sort of equal similarities keeps them there."""
    profiles = treated(num_batches=2, num_features=3)
    same = replace(profiles, features=np.ones_like(profiles.features))
    question = QUESTIONS["replicates"]
    assert (theirs(same, question)["average_precision"] == 1).all()
    ours = average_precision(same, question)
    share = ours["n_pos_pairs"] / ours["n_total_pairs"]
    np.testing.assert_allclose(ours["average_precision"], share)


@pytest.mark.real
def test_average_precision_of_cpjump1_plates_is_equal():
    """Across plates, on the first 50 compounds of three plates (all four: equal, too, but slow)."""
    paths = sorted(PLATES.glob("BR*.csv.gz"))[:3]
    if not paths:
        pytest.skip("no CPJUMP1 profiles beside the checkout")
    table = pd.concat([pd.read_csv(path, low_memory=False) for path in paths], ignore_index=True)
    name = "Metadata_broad_sample"
    some = sorted(table.loc[table["Metadata_control_type"] != "negcon", name].unique())[:50]
    table = table[table[name].isin(some)].reset_index(drop=True)
    features = [column for column in table if not column.startswith("Metadata_")]
    profiles = Profiles(
        features=table[features].to_numpy(np.float64),
        names=tuple(features),
        metadata=table[[name, P]],
    )
    question = Question(pos_sameby=(name,), pos_diffby=(P,), neg_diffby=(name,))
    reference = theirs(profiles, question)["average_precision"]
    double = average_precision(profiles, question, precision="double")["average_precision"]
    single = average_precision(profiles, question, precision="single")["average_precision"]
    assert (reference.notna() & double.notna()).sum() > 120
    np.testing.assert_allclose(double, reference, atol=1e-6)
    np.testing.assert_allclose(single, reference, atol=1e-3)  # 1.4e-5 seen on four plates
