"""NSC and NSCB: a double loop, limits, ties, and the BBBC021 counts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_cases import screen, shuffled_rows, with_column

from evenfield.errors import InputError
from evenfield.metrics.base import PROFILE_METRICS, evaluate_profiles
from evenfield.metrics.bootstrap import score_interval
from evenfield.metrics.kernels.view import Columns
from evenfield.metrics.nsc import nearest_label
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles

TABLE = Path(__file__).parents[2].parent / "shared" / "data" / "bbbc021_profiles"
BATCH, TREATMENT = "Metadata_Batch", "Metadata_Treatment"


def treatments(seed, num=24):
    """One row for each treatment, at most one batch each."""
    rng = numpy_generator(seed, "treatments")
    meta = pd.DataFrame(
        {
            TREATMENT: [f"t{i:02d}" for i in range(num)],
            "Metadata_Compound": rng.choice([*"pqrstuv"], num),
            "Metadata_Label": rng.choice(["x", "y", "z", ""], num),
            BATCH: rng.choice([*"ABC"], num),
        }
    )
    names = (*"abcd",)
    return Profiles(features=rng.normal(size=(num, 4)), names=names, metadata=meta)


def by_hand(profiles, forbidden):
    """Right, scored and reachable, by a double loop over annotated treatments."""
    meta = {name: profiles.metadata[name].tolist() for name in profiles.metadata}
    rows = [i for i in range(len(profiles)) if meta["Metadata_Label"][i]]
    x = profiles.features / np.linalg.norm(profiles.features, axis=1, keepdims=True)
    right = scored = reachable = 0
    for i in rows:
        allowed = [j for j in rows if all(meta[c][i] != meta[c][j] for c in forbidden)]
        if not allowed:
            continue
        scored += 1
        best = max(allowed, key=lambda j: x[i] @ x[j])
        right += meta["Metadata_Label"][best] == meta["Metadata_Label"][i]
        reachable += any(meta["Metadata_Label"][j] == meta["Metadata_Label"][i] for j in allowed)
    return right, scored, reachable


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6))
def test_equal_a_double_loop(seed):
    profiles = treatments(seed)
    columns = Columns(control=None)
    for name, forbidden in (
        ("nsc", ["Metadata_Compound"]),
        ("nscb", ["Metadata_Compound", BATCH]),
    ):
        score = PROFILE_METRICS[name](columns=columns)(profiles)
        right, scored, reachable = by_hand(profiles, forbidden)
        assert score.num == scored
        assert score.value * scored == pytest.approx(right)
        assert score.ceiling == pytest.approx(reachable / scored)
        assert score.also["reachable"][1] == reachable
        assert score.left_out["no label"] == (profiles.metadata["Metadata_Label"] == "").sum()


def test_batches_of_one_treatment_forbid_nothing_more():
    profiles = treatments(1)
    alone = with_column(profiles, BATCH, profiles.metadata[TREATMENT])
    columns = Columns(control=None)
    found = evaluate_profiles(alone, ["nsc", "nscb"], columns)
    assert found["nsc"].value == found["nscb"].value


def test_one_batch_leaves_nothing_to_score_and_says_so():
    profiles = with_column(treatments(2), BATCH, "A")
    score = PROFILE_METRICS["nscb"](columns=Columns(control=None))(profiles)
    assert (score.value, score.num, score.chance) == (None, 0, None)
    assert "nothing is scored" in score.notes[0]
    assert (
        score.left_out["no admissible neighbour"] == (profiles.metadata.Metadata_Label != "").sum()
    )


def test_ties_do_not_see_the_order_of_rows():
    x = np.array([[1.0, 0.0], [1.0, 1.0], [3.0, 3.0], [2.0, 2.0], [0.0, 1.0]])
    label = np.array([0, 0, 1, 0, 1])
    found = nearest_label(x, label, [np.arange(5)])
    # Row 0 has three nearest rows in one direction, two of them of its label.
    assert found.num_nearest.tolist() == [3, 2, 2, 2, 3]
    assert found.right[0] == pytest.approx(2 / 3)
    order = np.array([4, 2, 0, 3, 1])
    again = nearest_label(x[order], label[order], [np.arange(5)])
    np.testing.assert_allclose(again.right, found.right[order])


def test_ties_are_reported():
    profiles = treatments(3)
    features = profiles.features.copy()
    features[5] = features[9] = features[14]
    columns = Columns(control=None)
    meta = profiles.metadata.assign(
        Metadata_Label="x", Metadata_Compound=profiles.metadata[TREATMENT]
    )
    score = PROFILE_METRICS["nsc"](columns=columns)(
        replace(profiles, features=features, metadata=meta)
    )
    assert any("ties" in note for note in score.notes)
    assert score.items["tied"].max() >= 1


def test_a_profile_without_direction_is_an_error():
    profiles = treatments(4)
    features = profiles.features.copy()
    features[np.flatnonzero(profiles.metadata["Metadata_Label"] != "")[0]] = 0
    with pytest.raises(InputError, match="zero vector has no cosine"):
        PROFILE_METRICS["nsc"](columns=Columns(control=None))(profiles.with_features(features))
    with pytest.raises(InputError, match="own nearest neighbour"):
        nearest_label(features[:2] + 1, np.zeros(2, int), [])


def test_wells_are_collapsed_and_sites_refused():
    wells = screen(num_batches=2)
    score = PROFILE_METRICS["nsc"]()(wells)
    assert (score.num, score.unit) == (8, "treatment")
    assert "medians of 16 wells" in score.notes
    assert PROFILE_METRICS["nscb"]()(wells).num == 16  # a treatment of two batches is two
    sites = Profiles(
        features=np.repeat(wells.features, 2, axis=0),
        names=wells.names,
        metadata=wells.metadata.loc[wells.metadata.index.repeat(2)].reset_index(drop=True),
    )
    with pytest.raises(InputError, match="not wells"):
        PROFILE_METRICS["nsc"]()(sites)


def test_the_order_of_wells_is_irrelevant():
    wells = screen(noise=3.0)
    for name in ("nsc", "nscb"):
        a, b = (PROFILE_METRICS[name]()(p) for p in (wells, shuffled_rows(wells)))
        assert (a.value, a.ceiling, a.chance, a.also) == (b.value, b.ceiling, b.chance, b.also)


@pytest.fixture(scope="module")
def ljosa():
    """The 632 wells of BBBC021 with their raw features."""
    if not TABLE.is_dir():
        pytest.skip("no BBBC021 profiles beside the checkout")
    table = pd.read_parquet(TABLE / "bbbc021_wells.parquet")
    meta = [name for name in table if name.startswith("Metadata_")]
    dose = table["Metadata_Compound"] + "@" + table["Metadata_Concentration"].astype(str)
    features = [name for name in table if name not in meta]
    return Profiles(
        features=table[features].to_numpy(np.float64),
        names=tuple(features),
        metadata=table[meta].assign(**{TREATMENT: dose}).reset_index(drop=True),
    )


LJOSA = Columns(label="Metadata_MoA", control="Metadata_Control")


def centred(profiles, *, scale):
    """Each plate minus the mean of its DMSO wells, and over their spread."""
    x = profiles.features.copy()
    plate = profiles.metadata["Metadata_Plate"].to_numpy()
    control = profiles.metadata["Metadata_Control"].to_numpy(bool)
    for name in np.unique(plate):
        mine, own = plate == name, profiles.features[(plate == name) & control]
        spread = own.std(0) if scale else np.ones(x.shape[1])
        x[mine] = (x[mine] - own.mean(0)) / np.where(spread > 0, spread, 1)
    return x


@pytest.mark.real
@pytest.mark.parametrize(
    ("how", "nsc", "nscb"), [("global", 91, 66), ("plate", 79, 63), ("centre", 86, 63)]
)
def test_bbbc021_counts_are_those_of_the_published_table(ljosa, how, nsc, nscb):
    x = ljosa.features
    changed = {
        "global": lambda: (x - x.mean(0)) / x.std(0),
        "plate": lambda: centred(ljosa, scale=True),
        "centre": lambda: centred(ljosa, scale=False) / x.std(0),
    }[how]()
    found = evaluate_profiles(ljosa.with_features(changed), ["nsc", "nscb"], LJOSA)
    assert round(found["nsc"].value * 103, 6) == nsc
    assert round(found["nscb"].value * 103, 6) == nscb
    for score in found.values():
        assert score.num == 103
        assert score.chance == pytest.approx(14 / 103)
        assert not [note for note in score.notes if "ties" in note]
    # 11 treatments of two mechanisms have no mate in another week.
    assert found["nscb"].ceiling == pytest.approx(92 / 103)
    assert found["nscb"].also["reachable"] == (pytest.approx(nscb / 92), 92)
    assert found["nsc"].ceiling == 1
    lost = found["nscb"].items.query("~reachable")["Metadata_MoA"].value_counts()
    assert lost.to_dict() == {"Cholesterol-lowering": 6, "Kinase inhibitors": 5}


@pytest.mark.real
def test_bbbc021_interval_over_compounds_holds_the_value(ljosa):
    x = ljosa.features
    score = PROFILE_METRICS["nscb"](columns=LJOSA)(ljosa.with_features((x - x.mean(0)) / x.std(0)))
    found = score_interval(score, "Metadata_Compound")
    assert found.mean == pytest.approx(66 / 103)
    assert found.num_units == 38
    assert found.low < found.mean < found.high
    json.dumps({"low": found.low, "high": found.high})  # plain floats, fit for a record
