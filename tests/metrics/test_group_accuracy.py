import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.errors import InputError
from evenfield.metrics.groups import group_accuracy, group_ids


def test_toy_case_by_hand():
    """Two fields of cardinality 2 and 3: six groups, the first field fastest; two are empty."""
    hospital = np.array([0, 0, 1, 1, 0, 1])
    slide = np.array([0, 0, 0, 2, 2, 2])
    group, num = group_ids([hospital, slide])
    assert (group.tolist(), num) == ([0, 0, 1, 5, 4, 5], 6)
    label = np.array([1, 0, 1, 1, 0, 0])
    predicted = np.array([1, 1, 1, 0, 0, 0])
    found = group_accuracy(predicted, label, group, num)
    assert found.average == pytest.approx(4 / 6)
    assert found.worst == 0.5
    np.testing.assert_array_equal(found.by_group, [0.5, 1, np.nan, np.nan, 1, 0.5])
    assert found.count.tolist() == [2, 1, 0, 0, 1, 2]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 3))
def test_equals_loops(seed, num, num_fields):
    rng = np.random.default_rng(seed)
    fields = [rng.integers(0, rng.integers(1, 5), num) for _ in range(num_fields)]
    label, predicted = rng.integers(0, 3, (2, num))
    group, num_groups = group_ids(fields)
    found = group_accuracy(predicted, label, group, num_groups)
    sizes = [max(field) + 1 for field in fields]
    assert num_groups == np.prod(sizes)
    worst = []
    for number in range(num_groups):
        codes, rest = [], number
        for size in sizes:
            codes.append(rest % size)
            rest //= size
        mine = [i for i in range(num) if [f[i] for f in fields] == codes]
        assert found.count[number] == len(mine)
        if mine:
            worst.append(sum(label[i] == predicted[i] for i in mine) / len(mine))
            assert found.by_group[number] == pytest.approx(worst[-1])
    assert found.worst == pytest.approx(min(worst))
    assert found.average == pytest.approx(np.mean(label == predicted))


def test_one_group_is_the_average_and_nothing_is_refused():
    label, predicted = np.array([0, 1, 1]), np.array([0, 0, 1])
    found = group_accuracy(predicted, label, np.zeros(3, int), 1)
    assert found.worst == found.average == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="nothing to score"):
        group_accuracy(label[:0], label[:0], label[:0], 1)
    with pytest.raises(InputError, match="codes from 0"):
        group_ids([np.array([0, -1])])
    with pytest.raises(InputError, match="codes from 0"):
        group_ids([])
