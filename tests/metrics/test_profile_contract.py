"""What every profile metric must do; a new one is tested here with no new line."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from profile_cases import screen, shuffled_rows, with_column

from evenfield.errors import InputError
from evenfield.metrics.base import PROFILE_METRICS
from evenfield.metrics.kernels.view import Columns
from evenfield.metrics.relationships import RelationshipRecall, pairs_of_sets

EXTRA = {"leiden-nmi", "leiden-ari"}


def make(name):
    cls = PROFILE_METRICS[name]
    if name in EXTRA:
        pytest.importorskip("igraph", reason="igraph is not installed (it is GPL)")
    if cls is RelationshipRecall:
        names = [f"c{i:02d}" for i in range(24)]
        pairs = pairs_of_sets({str(i): names[i::6] for i in range(6)})
        return cls(cls.Config(pairs=pairs))
    return cls()


@pytest.fixture(scope="module")
def table():
    return screen(
        num_batches=3, num_compounds=24, num_labels=6, signal=1.0, batch=1.0, num_features=30
    )


@pytest.fixture(params=list(PROFILE_METRICS))
def metric(request):
    return make(request.param)


def test_it_says_how_to_read_it(metric):
    cls = type(metric)
    assert cls.direction in {"higher", "lower"}
    assert cls.bounds[0] < cls.bounds[1]
    assert cls.aspect in {"biology", "batch"}
    assert cls.rows in {"treated", "controls", "all"}
    assert cls.unit in {"well", "treatment"}
    assert cls.chance
    assert cls.__doc__
    assert all(hasattr(Columns(), role) for role in cls.needs)
    for field in metric.config.__slots__ if hasattr(metric.config, "__slots__") else ():
        assert f"{field}:" in type(metric.config).__doc__


def test_a_score_is_complete_and_within_its_bounds(metric, table):
    before = copy.deepcopy(table)
    score = metric(table)
    low, high = metric.bounds
    assert low <= score.value <= high
    assert low <= score.chance <= high
    assert low <= score.ceiling <= high
    assert score.num > 0
    assert (score.metric, score.direction) == (metric.name, metric.direction)
    np.testing.assert_array_equal(table.features, before.features)  # nothing was changed
    pd.testing.assert_frame_equal(table.metadata, before.metadata)
    if len(score.items):
        assert score.items["score"].between(low - 1e-9, high + 1e-9).all()


def test_the_order_of_rows_is_irrelevant(metric, table):
    a, b = metric(table), metric(shuffled_rows(table))
    assert a.value == pytest.approx(b.value, abs=1e-12)
    assert a.num == b.num
    assert dict(a.left_out) == dict(b.left_out)


def test_names_of_batches_are_irrelevant(metric, table):
    names = {"b0": "zulu", "b1": "01", "b2": "alpha"}
    other = with_column(table, "Metadata_Batch", table.metadata["Metadata_Batch"].map(names))
    assert metric(other).value == pytest.approx(metric(table).value, abs=1e-9)


def test_float32_tells_the_same(metric, table):
    single = metric(table.with_features(table.features.astype(np.float32)))
    assert single.value == pytest.approx(metric(table).value, abs=1e-2)


def test_no_row_to_score_is_no_number(metric, table):
    nobody = with_column(table, "Metadata_ControlType", "empty")
    score = metric(nobody)
    assert (score.value, score.num) == (None, 0)


def test_one_batch_is_said_or_scored(metric, table):
    score = metric(table[(table.metadata["Metadata_Batch"] == "b1").to_numpy()])
    if score.value is None:
        assert score.num == 0
        assert score.left_out or score.notes
    else:
        assert score.num > 0


def test_numbers_that_are_not_finite_are_refused(metric, table):
    features = table.features.copy()
    features[3, 7] = np.nan
    with pytest.raises(InputError, match="f7"):
        metric(table.with_features(features))


def test_a_missing_column_is_named(metric, table):
    for role in type(metric).needs:
        column = getattr(Columns(), role)
        with pytest.raises(InputError, match=column):
            metric(replace(table, metadata=table.metadata.drop(columns=column)))


def test_sites_are_not_wells(metric, table):
    well = table.metadata["Metadata_Well"].where(table.metadata.index != 5, "A01")
    with pytest.raises(InputError, match="not wells"):
        metric(with_column(table, "Metadata_Well", well))
