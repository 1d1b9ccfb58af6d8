"""The scoreboard, the combined number, baselines and intervals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from profile_cases import screen, with_column

from evenfield.errors import InputError
from evenfield.metrics.base import PROFILE_METRICS, Score, evaluate_profiles
from evenfield.metrics.baselines import (
    cell_count_profiles,
    cell_count_scores,
    on_arc,
    random_profiles,
)
from evenfield.metrics.bootstrap import score_interval
from evenfield.metrics.table import BATCH, BIOLOGY, Row, Scoreboard, combine, scaled
from evenfield.seeds import numpy_generator

OPTIONS = {"num_batches": 3, "num_compounds": 30, "num_labels": 3, "signal": 1.5}


@pytest.fixture(scope="module")
def scores():
    return evaluate_profiles(screen(batch=1.0, **OPTIONS), (*BIOLOGY, *BATCH, "nsc", "knn"))


def row(score, **options):
    return Row(**{"correction": "none", "fitted_on": "-", "score": score} | options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num": 0}, "a denominator"),
        ({"value": None}, "a denominator"),
        ({"chance": None}, "a chance level"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused(scores, change, words):
    board = Scoreboard()
    with pytest.raises(InputError, match=words):
        board.add(row(replace(scores["nsc"], **change)))
    with pytest.raises(InputError, match="the name of the correction"):
        board.add(row(scores["nsc"], correction=" "))
    with pytest.raises(InputError, match="was fitted on"):
        board.add(row(scores["nsc"], fitted_on=""))
    assert not board.rows


def test_a_batch_score_does_not_stand_alone(scores):
    board = Scoreboard()
    board.add(row(scores["ilisi"], correction="noise"))
    with pytest.raises(InputError, match="without a biology score: noise"):
        board.table()
    board.add(row(scores["nsc"], correction="noise"))
    table = board.table()
    assert table["metric"].tolist() == ["ilisi", "nsc"]
    assert {"chance", "ceiling", "num", "left_out", "also", "fitted_on"} <= set(table)
    assert "reachable" in table["also"][1]


def test_combined_number_prints_members_and_weights(scores):
    found = combine(scores)
    assert set(found.members) == {*BIOLOGY, *BATCH}
    assert sum(weight for _, weight in found.members.values()) == pytest.approx(1)
    assert found.total == pytest.approx(0.6 * found.biology + 0.4 * found.batch)
    assert found.total == pytest.approx(sum(v * w for v, w in found.members.values()))
    for name, (value, _) in found.members.items():
        assert 0 <= value <= 1
        assert name in str(found)
    assert str(found).startswith(f"{found.total:.3f} = ")


def test_combined_number_does_not_see_rivals(scores):
    """There is no other row in it: min-max scaling over a table would change with its rows."""
    rivals = [evaluate_profiles(screen(batch=b, **OPTIONS), (*BIOLOGY, *BATCH)) for b in (0.0, 9.0)]
    alone = combine(scores).total
    totals = [combine(rival).total for rival in rivals]
    assert combine(scores).total == alone
    assert totals[1] < alone < totals[0]  # ... and it does order by batch effect


def test_combined_number_wants_every_member(scores):
    short = {name: score for name, score in scores.items() if name != "clisi"}
    with pytest.raises(InputError, match=r"missing \['clisi'\]"):
        combine(short)
    with pytest.raises(InputError, match="could not be scored"):
        combine({**scores, "clisi": replace(scores["clisi"], value=None)})
    with pytest.raises(InputError, match="of the other side"):
        combine(scores, biology=("nsc", "ilisi"))
    with pytest.raises(InputError, match="biology side"):
        combine(scores, biology=())


def test_scaled_uses_declared_bounds_only():
    score = Score(metric="x", value=-0.1, chance=0, ceiling=1, num=5, unit="well", bounds=(-0.5, 1))
    assert scaled(score) == 0
    assert scaled(replace(score, value=0.25)) == 0.25
    assert scaled(replace(score, value=0.25, direction="lower", bounds=(0, 1))) == 0.75


def test_directions_of_counts_sort_by_the_difference_of_ranks():
    profiles = screen(num_compounds=20)
    count = numpy_generator(0, "counts").permutation(len(profiles)) ** 2
    profiles = with_column(profiles, "Metadata_CellCount", count)
    found = cell_count_profiles(profiles)
    assert found.features.shape == (len(profiles), 3)
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1)
    np.testing.assert_allclose(found.features.mean(1), 0, atol=1e-12)  # correlation = cosine
    np.testing.assert_allclose(np.corrcoef(found.features), found.features @ found.features.T)
    order = np.argsort(count)
    cosine = found.features @ found.features[order[0]]
    assert (np.diff(cosine[order]) < 0).all()  # the further the count, the lower
    assert on_arc(np.array([0.0, 1.0])).shape == (2, 3)


def test_cell_count_knows_toxic_treatments_and_nothing_else():
    profiles = screen(num_compounds=12, num_labels=4, num_batches=4, signal=2.0)
    label = profiles.metadata["Metadata_Label"]
    rng = numpy_generator(0, "count")
    count = np.where(label == "moa1", 20, 200) + rng.integers(0, 10, len(label))
    toxic = with_column(profiles, "Metadata_CellCount", count)
    metric = PROFILE_METRICS["knn"]()
    by_count = cell_count_scores(metric, toxic)
    assert set(by_count) == {"cell count", "cell count, rank within plate"}
    for score in by_count.values():
        items = score.items.groupby("Metadata_Label")["score"].mean()
        assert items["moa1"] > 0.9
        assert items.drop("moa1").mean() < 0.6
        assert "number of cells" in score.notes[-1]
    assert metric(profiles).value > by_count["cell count"].value + 0.3


def test_rank_within_plates_removes_seeding_density():
    profiles = screen(num_batches=3)
    density = profiles.metadata["Metadata_Batch"].str[1:].astype(int) * 1000
    dense = with_column(
        profiles, "Metadata_CellCount", profiles.metadata.Metadata_CellCount + density
    )
    metric = PROFILE_METRICS["same-domain-neighbours"]()
    found = cell_count_scores(metric, dense)
    assert found["cell count"].value > 0.85
    assert found["cell count, rank within plate"].value < 0.6


def test_cell_count_must_be_there_and_be_a_count():
    profiles = screen()
    with pytest.raises(InputError, match="no column Metadata_Cells"):
        cell_count_profiles(profiles, count="Metadata_Cells")
    bad = with_column(profiles, "Metadata_CellCount", "many")
    with pytest.raises(InputError, match="'many'"):
        cell_count_profiles(bad)


def test_noise_mixes_perfectly_and_knows_nothing():
    """Why a batch score never stands alone."""
    noise = random_profiles(screen(**OPTIONS))
    found = evaluate_profiles(noise, ["ilisi", "knn", "map-activity"])
    assert found["ilisi"].value > 0.8
    assert found["knn"].value == pytest.approx(found["knn"].chance, abs=0.15)
    assert found["map-activity"].value == pytest.approx(found["map-activity"].chance, abs=0.1)


def items(values, units):
    table = pd.DataFrame({"score": values, "Metadata_Batch": units})
    return Score(
        metric="x", value=float(np.mean(values)), chance=0.1, ceiling=1, num=len(values),
        unit="well", items=table,
    )  # fmt: skip


def test_interval_resamples_whole_units():
    # Ten units whose items all agree: the interval is that of ten numbers, not of a hundred.
    values = np.repeat([0, 1] * 5, 10).astype(float)
    score = items(values, np.repeat(list("abcdefghij"), 10))
    found = score_interval(score, "Metadata_Batch")
    assert found.mean == score.value
    assert found.num_units == 10
    wide = found.high - found.low
    as_if_independent = items(values, np.arange(100))
    narrow = score_interval(as_if_independent, "Metadata_Batch")
    assert wide > 2.5 * (narrow.high - narrow.low)


def test_interval_keeps_the_printed_value_where_units_differ_in_size():
    score = items([1.0, 0, 0, 0, 0, 1], list("abbbbc"))
    found = score_interval(score, "Metadata_Batch")
    assert found.mean == pytest.approx(2 / 6)  # not the mean over units, 2/3
    assert found.low <= found.mean <= found.high
    assert score_interval(items([1.0, 0.0], ["a", "b"]), "Metadata_Batch").low is None
    with pytest.raises(InputError, match="Metadata_Week"):
        score_interval(score, "Metadata_Week")


def test_interval_of_a_median_is_refused(scores):
    with pytest.raises(InputError, match="not the mean of its items"):
        score_interval(scores["ilisi"], "Metadata_Batch")
    found = score_interval(scores["knn"], "Metadata_Batch")
    assert found.mean == pytest.approx(scores["knn"].value)
