import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from evenfield.data.sampler import Episodes, Shuffled, few, label_shift_contexts, plain_contexts
from evenfield.errors import EvenfieldWarning, InputError


def episodes(num_plates=5, size=200, controls=150, **settings):
    given = {"num_perturbed": 64, "num_controls": 128, "seed": 0, **settings}
    perturbed = {f"p{i}": np.arange(size) + 1000 * i for i in range(num_plates)}
    control = {f"p{i}": np.arange(controls) + 1000 * i + 500 for i in range(num_plates)}
    return Episodes(perturbed, control, **given)


def test_an_episode_is_one_plate_perturbed_first_without_duplicates():
    sampler = episodes()
    for step in range(50):
        rows = sampler.rows(step)
        assert len(rows) == 64 + 128
        assert len(set(rows // 1000)) == 1
        assert len(set(rows)) == len(rows)
        assert (rows[:64] % 1000 < 200).all()
        assert (rows[64:] % 1000 >= 500).all()


def test_plates_are_drawn_uniformly_not_by_size():
    perturbed = {"big": np.arange(900), "small": np.arange(1000, 1100)}
    controls = {"big": np.arange(2000, 2200), "small": np.arange(3000, 3200)}
    sampler = Episodes(perturbed, controls, num_perturbed=8, num_controls=8, seed=1)
    big = sum(sampler.rows(step)[0] < 900 for step in range(600))
    assert chisquare([big, 600 - big]).pvalue > 0.001


def test_episodes_are_a_pure_function_of_seed_and_step():
    one, two = episodes(seed=3), episodes(seed=3)
    order = [7, 0, 7, 3]
    np.testing.assert_array_equal([one.rows(s) for s in order], [two.rows(s) for s in order])
    assert not np.array_equal(one.rows(0), episodes(seed=4).rows(0))


def test_small_plates_are_drawn_with_replacement_at_full_size():
    assert len(episodes(size=20, controls=4).rows(0)) == 64 + 128


def test_random_ratio_stays_in_its_bounds_and_varies():
    sizes = set()
    sampler = episodes(ratio="random")
    for step in range(60):
        rows = sampler.rows(step) % 1000
        num_controls = int((rows >= 500).sum())
        assert 8 <= num_controls <= 128
        assert 2 <= len(rows) - num_controls <= 64
        sizes.add(len(rows))
    assert len(sizes) > 10


def test_a_plate_without_controls_is_an_error_or_a_stated_fallback():
    perturbed = {"a": np.arange(10), "b": np.arange(10, 20)}
    controls = {"a": np.arange(20, 30)}
    with pytest.raises(InputError, match=r"1 of 2 training contexts have no negative control: b"):
        Episodes(perturbed, controls, num_perturbed=4, num_controls=4, seed=0)
    with pytest.warns(EvenfieldWarning, match=r"train without them.*: b"):
        sampler = Episodes(
            perturbed,
            controls,
            num_perturbed=4,
            num_controls=4,
            seed=0,
            missing_controls="without",
        )
    assert {len(sampler.rows(step)) for step in range(20)} == {4, 8}


def test_no_controls_asked_is_arm_bn():
    assert len(episodes(num_controls=0).rows(0)) == 64


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 60), size=st.integers(1, 70), seed=st.integers(0, 9))
def test_shuffled_visits_each_row_at_most_once_an_epoch(n, size, seed):
    sampler = Shuffled(np.arange(n), size=size, seed=seed)
    seen = np.concatenate([sampler.rows(s) for s in range(sampler.passes_per_epoch)])
    assert len(seen) == n // min(size, n) * min(size, n)
    assert len(set(seen)) == len(seen)


def test_shuffled_needs_no_replay():
    one, two = (Shuffled(np.arange(50), size=8, seed=2) for _ in range(2))
    for step in range(20):
        one.rows(step)
    np.testing.assert_array_equal(one.rows(20), two.rows(20))


def test_shuffled_without_rows():
    with pytest.raises(InputError, match="no labelled training image"):
        Shuffled(np.arange(0), size=8, seed=0)


@settings(deadline=None, max_examples=30)
@given(
    alpha=st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    num_images=st.integers(1, 80),
    per_class=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_label_shift_never_shrinks_and_says_how_short_it_was(alpha, num_images, per_class, seed):
    label = np.repeat(np.arange(4), per_class)
    rows = np.arange(len(label)) + 100
    contexts = label_shift_contexts("p", rows, label, alpha=alpha, num_images=num_images, seed=seed)
    assert contexts
    for item in contexts:
        assert len(item.perturbed) == num_images
        counts = np.bincount(label[item.perturbed - 100], minlength=4)
        assert item.short == np.maximum(counts - per_class, 0).sum()


def test_rotation_visits_all_classes():
    label = np.repeat(np.arange(8), 72)
    contexts = label_shift_contexts(
        "p", np.arange(len(label)), label, alpha=0.01, num_images=64, seed=0
    )
    first = [np.bincount(label[item.perturbed], minlength=8) for item in contexts[:8]]
    np.testing.assert_array_equal(np.sum(first, axis=0), np.full(8, 64))
    top = np.mean([counts.max() / 64 for counts in first])
    assert top > 0.8  # alpha = 0.01: one class dominates


def test_plain_contexts_partition_the_plate():
    rows = np.arange(100)
    contexts = plain_contexts("p", rows, num_images=8, seed=0)
    together = np.concatenate([item.perturbed for item in contexts])
    assert len(contexts) == 12
    assert len(set(together)) == 96


def test_few_is_seeded_and_never_more_than_there_are():
    rows = np.arange(30)
    np.testing.assert_array_equal(few(rows, 8, 0, "a"), few(rows, 8, 0, "a"))
    assert len(few(rows, 8, 0, "a")) == 8
    assert len(few(rows, 99, 0, "a")) == 30
    assert len(few(rows, None, 0, "a")) == 30
    assert not np.array_equal(few(rows, 8, 0, "a"), few(rows, 8, 0, "b"))


def test_balance_draws_classes_evenly():
    label = np.r_[np.zeros(190, int), np.ones(10, int)]
    flat = Shuffled(np.arange(200), size=50, seed=0, label=label)
    share = np.mean([label[flat.rows(step)].mean() for step in range(40)])
    assert 0.45 < share < 0.55
    plate = Episodes(
        {"p": np.arange(200)}, {}, num_perturbed=50, num_controls=0, seed=0, label=label
    )
    share = np.mean([label[plate.rows(step)].mean() for step in range(40)])
    assert 0.45 < share < 0.55
    np.testing.assert_array_equal(flat.rows(3), flat.rows(3))
