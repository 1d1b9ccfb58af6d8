import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.errors import InputError
from evenfield.metrics.bootstrap import interval, paired_interval
from evenfield.metrics.gap import gap_closed
from evenfield.seeds import numpy_generator


def test_gap():
    assert gap_closed(0.9, 0.5, 0.9).closed == 1
    assert gap_closed(0.9, 0.5, 0.5).closed == 0
    assert gap_closed(0.9, 0.5, 0.3).closed == pytest.approx(-0.5)
    assert gap_closed(0.2, 1.0, 0.4, direction="lower").closed == pytest.approx(0.75)
    for none in (gap_closed(0.9, 0.9, 1), gap_closed(0.9, 0.95, 1)):
        assert none.closed is None
        assert "no gap" in none.reason
    assert gap_closed(1.0, 0.2, 0.4, direction="lower").closed is None


def test_a_unit_counts_once_however_often_it_was_measured():
    found = interval(
        np.array([1.0, 1.0, 1.0, 0.0, 0.0]),
        np.array(["a", "a", "a", "b", "c"]),
        np.array([0, 1, 2, 0, 0]),
    )
    assert found.mean == pytest.approx(1 / 3)
    assert (found.num_units, found.num_seeds) == (3, 1)
    # Two folds of seed 0 weigh as much as one of seed 1.
    assert interval(np.array([0.0, 0.0, 1.0]), np.array([4, 4, 4]), np.array([0, 0, 1])).mean == 0.5


def test_no_fake_interval():
    found = interval(np.array([0.1, 0.9, 0.5]), np.array(["a", "b", "b"]))
    assert found.low is None
    assert found.high is None
    assert found.num_units == 2


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=9), st.floats(-2, 2))
def test_laws(numbers, shift):
    values, units = np.array(numbers), np.arange(len(numbers))
    found = interval(values, units)
    order = numpy_generator(0, "order").permutation(len(values))
    assert interval(values[order], units[order]) == found
    assert min(numbers) - 1e-12 <= found.low <= found.high <= max(numbers) + 1e-12
    moved = interval(values + shift, units)
    assert moved.low == pytest.approx(found.low + shift, abs=1e-9)
    assert interval(values, units, level=0.5).low >= found.low


def test_pairs_see_through_a_common_spread():
    rng = numpy_generator(0, "pairs")
    easy = rng.uniform(0.2, 0.9, 8)
    gain = paired_interval(easy + 0.03, easy, np.arange(8))
    assert gain.low == pytest.approx(0.03)
    alone = interval(easy + 0.03, np.arange(8))
    assert alone.low < easy.mean()
    with pytest.raises(InputError, match="pair"):
        paired_interval(easy, easy[1:], np.arange(8))


def test_coverage_is_near_its_name():
    rng = numpy_generator(1, "coverage")
    hits = 0
    for trial in range(200):
        found = interval(rng.normal(size=20), np.arange(20), num_draws=300, seed=trial)
        hits += found.low <= 0 <= found.high
    assert 0.87 <= hits / 200 <= 0.99


def test_errors():
    for values, units in [([], []), ([np.nan], ["a"]), ([1.0], ["a", "b"])]:
        with pytest.raises(InputError):
            interval(np.array(values, dtype=float), np.array(units))
