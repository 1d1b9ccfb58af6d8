"""Exact feature distribution matching: sorting by keys, the definition, its gradient."""

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.nn.histogram import matched, ordered

FLOATS = st.floats(width=32, allow_nan=False)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def definition(x, share, partner):
    """x + share (y - stopgrad x), y with the partner's sorted values in own rank order."""
    rows = []
    for i in range(len(x)):
        channels = []
        for own, other in zip(x[i].flatten(1), x[partner[i]].flatten(1), strict=True):
            rank = own.detach().sort(stable=True).indices.argsort()
            channels.append(own + share[i] * (other.sort(stable=True).values[rank] - own.detach()))
        rows.append(torch.stack(channels).view_as(x[i]))
    return torch.stack(rows)


@settings(deadline=None, max_examples=50)
@given(values=st.lists(FLOATS, min_size=1, max_size=20))
def test_keys_sort_all_floats_stably(values):
    rows = torch.tensor([values, values[::-1]], dtype=torch.float32)
    ours, index = ordered(rows)
    expected = rows.sort(dim=1, stable=True)
    assert torch.equal(ours, expected.values)
    assert torch.equal(index, expected.indices)


def test_keys_sort_extremes_and_both_zeros():
    smallest = struct.unpack("f", struct.pack("I", 1))[0]
    row = torch.tensor([[0.0, -0.0, float("inf"), -smallest, smallest, -float("inf"), 0.0, -1e38]])
    values, index = ordered(row)
    assert index.tolist() == [[5, 7, 3, 0, 1, 6, 4, 2]]
    assert torch.equal(values, row.gather(1, index))


def test_more_than_one_block(monkeypatch):
    monkeypatch.setattr("evenfield.nn.histogram.BLOCK", 64)
    rows = drawn(37, 30)
    assert torch.equal(ordered(rows)[0], rows.sort(dim=1).values)


@settings(deadline=None, max_examples=15)
@given(n=st.integers(1, 4), c=st.integers(1, 3), side=st.integers(1, 4), seed=st.integers(0, 99))
def test_values_and_gradient_are_those_of_the_definition(n, c, side, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, side, side, generator=g).double().requires_grad_()
    share, partner = torch.rand(n, generator=g).double(), torch.randint(0, n, (n,), generator=g)
    upstream = torch.randn(n, c, side, side, generator=g).double()
    expected = definition(x, share, partner)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    ours = matched(x, share, partner)
    (got,) = torch.autograd.grad(ours, x, upstream)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(got, wanted)


def test_a_full_share_gives_the_partners_histogram_in_own_order():
    x, partner = drawn(3, 2, 5, 5), torch.tensor([1, 2, 0])
    y = matched(x, torch.ones(3), partner)
    torch.testing.assert_close(y.flatten(2).sort(2).values, x[partner].flatten(2).sort(2).values)
    assert torch.equal(y.flatten(2).argsort(2), x.flatten(2).argsort(2))


def test_no_share_and_oneself_as_partner_change_nothing():
    x = drawn(3, 2, 5, 5)
    assert torch.equal(matched(x, torch.zeros(3), torch.tensor([1, 2, 0])), x)
    torch.testing.assert_close(matched(x, torch.rand(3), torch.arange(3)), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_and_memory_format_stay(dtype):
    x = drawn(3, 4, 5, 5).to(dtype, memory_format=torch.channels_last)
    share, partner = torch.tensor([0.2, 0.5, 1.0]), torch.tensor([1, 2, 0])
    y = matched(x, share, partner)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    exact = definition(x.double(), share, partner)
    torch.testing.assert_close(y.double(), exact, rtol=1e-2, atol=1e-2)
