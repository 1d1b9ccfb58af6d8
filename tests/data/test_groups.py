import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from evenfield.data.groups import Chunks, Domains, Groups, Pure
from evenfield.data.sampler import Shuffled
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.seeds import numpy_generator


def screen(*sizes, offset=1000):
    """Rows and a domain code for each row of a manifest in which other rows lie between."""
    domain = np.full(offset + sum(sizes), -7)
    rows = np.arange(offset, offset + sum(sizes))
    domain[rows] = np.repeat(10 * np.arange(len(sizes)), sizes)  # codes need not follow each other
    return numpy_generator(0, "order").permutation(rows), domain


def batches(sampler, num):
    return [sampler.rows(step) for step in range(num)]


def test_exactly_n_domains_of_b_over_n_images():
    rows, domain = screen(50, 100, 200, 400, 30)
    for batch in batches(Domains(rows, domain, size=24, num_domains=3, seed=0), 60):
        names, counts = np.unique(domain[batch], return_counts=True)
        assert len(names) == 3
        assert (counts == 8).all()
        assert len(set(batch)) == 24
        assert np.isin(batch, rows).all()


def test_domains_come_with_replacement_when_they_need_not_be_distinct():
    rows, domain = screen(90, 90, 90)
    sampler = Domains(rows, domain, size=12, num_domains=3, distinct=False, seed=0)
    found = [np.unique(domain[batch], return_counts=True)[1] for batch in batches(sampler, 300)]
    assert all(counts.sum() == 12 and (counts % 4 == 0).all() for counts in found)
    # 3 of 3 domains with replacement: one, two or three different with 3, 18 and 6 chances of 27.
    num = np.bincount([len(counts) for counts in found], minlength=4)[1:]
    assert chisquare(num, np.array([3, 18, 6]) / 27 * 300).pvalue > 0.001


@pytest.mark.parametrize("distinct", [True, False])
def test_domains_are_drawn_uniformly_and_so_are_images_in_them(distinct):
    rows, domain = screen(20, 40, 80, 160)
    sampler = Domains(rows, domain, size=8, num_domains=2, distinct=distinct, seed=1)
    drawn = np.concatenate(batches(sampler, 2000))
    assert chisquare(np.unique(domain[drawn][::4], return_counts=True)[1]).pvalue > 0.001
    for code in np.unique(domain[rows]):
        here = drawn[domain[drawn] == code]
        assert chisquare(np.bincount(here - here.min())).pvalue > 0.001


def test_every_order_of_a_draw_without_replacement_is_as_likely():
    groups = Groups(np.arange(40), np.zeros(40, int))
    # 3 of 40: not crowded; the redraw of repeated images must not prefer any.
    drawn = np.array([groups.draw(numpy_generator(s), np.zeros(1, int), 3) for s in range(6000)])
    for column in drawn.T:
        assert chisquare(np.bincount(column, minlength=40)).pvalue > 0.001
    assert chisquare(np.unique(drawn.argsort(1) @ [9, 3, 1], return_counts=True)[1]).pvalue > 0.001


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    names=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    each=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_a_draw_repeats_no_row_of_a_group_that_has_more(sizes, names, each, seed):
    rows, domain = screen(*sizes)
    names = np.array([name % len(sizes) for name in names])
    drawn = Groups(rows, domain).draw(numpy_generator(seed), names, each)
    np.testing.assert_array_equal(domain[drawn], 10 * np.repeat(names, each))
    for name in set(names.tolist()):
        here = drawn[domain[drawn] == 10 * name]
        if sizes[name] > len(here):
            assert len(set(here.tolist())) == len(here)


def test_images_of_a_chunk_share_their_domain_and_stand_together():
    rows, domain = screen(50, 100, 200)
    firsts = []
    for batch in batches(Chunks(rows, domain, size=26, chunk=4, seed=0), 300):
        assert len(batch) == 24
        assert len(set(batch)) == 24
        chunks = domain[batch].reshape(6, 4)
        assert (chunks == chunks[:, :1]).all()
        firsts.extend(chunks[:, 0])
    assert chisquare(np.unique(firsts, return_counts=True)[1]).pvalue > 0.001


def test_classes_are_drawn_evenly_in_every_domain():
    rows, domain = screen(190, 190)
    label = np.zeros_like(domain)
    label[1000:1010] = 1  # 10 of 190 images of the first domain, none of the second
    sampler = Domains(rows, domain, size=20, num_domains=2, seed=0, label=label)
    drawn = np.concatenate(batches(sampler, 100))
    assert 0.45 < label[drawn[domain[drawn] == 0]].mean() < 0.55
    assert label[drawn[domain[drawn] == 10]].sum() == 0
    assert 0.45 < np.mean(domain[drawn] == 0) < 0.55


def makers():
    rows, domain = screen(60, 60, 60, 60)
    half = [rows[np.isin(domain[rows], codes)] for codes in ((0, 10), (20, 30))]
    return {
        "domains": lambda seed: Domains(rows, domain, size=12, num_domains=3, seed=seed),
        "chunks": lambda seed: Chunks(rows, domain, size=12, chunk=4, seed=seed),
        "pure": lambda seed: Pure([Shuffled(r, size=12, seed=seed) for r in half], seed=seed),
        "pure domains": lambda seed: Pure(
            [Domains(r, domain, size=12, num_domains=2, seed=seed) for r in half], seed=seed
        ),
    }


@pytest.mark.parametrize("name", sorted(makers()))
def test_a_batch_is_a_pure_function_of_seed_and_step(name):
    make = makers()[name]
    one, two = make(3), make(3)
    order = [70, 0, 70, 3]
    np.testing.assert_array_equal([one.rows(s) for s in order], [two.rows(s) for s in order])
    assert not np.array_equal(make(3).rows(0), make(4).rows(0))
    assert not np.array_equal(make(3).rows(0), make(3).rows(1))


def test_pure_batches_hold_one_value_and_every_image_once_an_epoch():
    rows, kind = screen(50, 20, 7)
    parts = [Shuffled(rows[kind[rows] == k], size=8, seed=k) for k in (0, 10, 20)]
    sampler = Pure(parts, seed=0)
    assert sampler.passes_per_epoch == 6 + 2 + 1  # 7 images fill a smaller batch of their own
    for epoch in range(3):
        seen = [sampler.rows(epoch * 9 + place) for place in range(9)]
        assert all(len(set(kind[batch])) == 1 for batch in seen)
        together = np.concatenate(seen)
        assert len(set(together)) == len(together) == 6 * 8 + 2 * 8 + 7


def test_the_order_of_values_is_drawn_for_every_epoch():
    rows, kind = screen(40, 40)
    sampler = Pure([Shuffled(rows[kind[rows] == k], size=8, seed=k) for k in (0, 10)], seed=0)
    orders = [tuple(kind[sampler.rows(10 * e + place)[0]] for place in range(10)) for e in range(5)]
    assert len(set(orders)) > 1


def test_fewer_domains_than_asked_for_are_all_taken_with_a_warning():
    rows, domain = screen(50, 50)
    with pytest.warns(EvenfieldWarning, match=r"holds 2 domains, not 9: images of U2OS"):
        sampler = Domains(rows, domain, size=72, num_domains=9, seed=0, among="images of U2OS")
    assert np.unique(domain[sampler.rows(0)], return_counts=True)[1].tolist() == [36, 36]


def test_what_cannot_make_a_batch_is_named():
    rows, domain = screen(50, 50)
    with pytest.raises(InputError, match="3 images cannot hold 4 domains"):
        Domains(rows, domain, size=3, num_domains=4, distinct=False, seed=0)
    with pytest.raises(InputError, match="3 images cannot hold chunks of 4"):
        Chunks(rows, domain, size=3, chunk=4, seed=0)
    with pytest.raises(InputError, match="no labelled training image"):
        Domains(rows[:0], domain, size=3, num_domains=1, seed=0)
