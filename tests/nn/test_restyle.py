"""Feature statistics: exact formulas and gradients, partners, places."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.errors import EvenfieldWarning, InputError
from evenfield.nn.backbones import build_backbone
from evenfield.nn.restyle import (
    check_places,
    chosen,
    floored,
    mixing_shares,
    partners,
    restyle,
    shifted,
    spread,
    statistics,
    style_mixed,
    widths,
)
from evenfield.seeds import numpy_generator


def drawn(*shape, seed=0, mean=0.5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + mean


def written_out(x):
    """Mean and sqrt(biased variance + 1e-6) in torch's own operations."""
    mu = x.mean((2, 3))
    return mu, ((x - mu[..., None, None]).square().mean((2, 3)) + 1e-6).sqrt()


def restyled(x, mu, sigma, new_mu, new_sigma):
    over = [v[..., None, None] for v in (mu, sigma, new_mu, new_sigma)]
    return over[3] * (x - over[0]) / over[1] + over[2]


def test_statistics_are_exact_in_any_format():
    x = drawn(5, 7, 9, 8, mean=100.0)
    for y in (x, x.to(memory_format=torch.channels_last), x.bfloat16()):
        ours, exact = statistics(y), written_out(y.double())
        assert all(part.dtype == torch.float32 for part in ours)
        torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours[1].double(), exact[1], rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=15)
@given(n=st.integers(1, 4), c=st.integers(1, 3), side=st.integers(1, 4), seed=st.integers(0, 99))
def test_gradients_are_those_of_the_formula(n, c, side, seed):
    """Through the features, through their statistics, and through what is asked for."""
    g = torch.Generator().manual_seed(seed)
    x, a, b, upstream = (
        torch.randn(*shape, generator=g).double().requires_grad_()
        for shape in ((n, c, side, side), (n, c), (n, c), (n, c, side, side))
    )

    def gradients(statistics, restyle):
        mu, sigma = statistics(x)
        y = restyle(x, mu, sigma, mu.square() + a, sigma * b + mu)
        return y, *torch.autograd.grad(y, (x, a, b), upstream)

    for ours, expected in zip(
        gradients(statistics, restyle), gradients(written_out, restyled), strict=True
    ):
        # One pixel has sigma = 1e-3: what is divided by it is large.
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_only_the_gradients_asked_for_are_computed():
    x, scale = drawn(4, 3, 5, 5), torch.ones(4, 3, requires_grad=True)
    mu, sigma = statistics(x)
    restyle(x, mu, sigma, mu, sigma * scale).sum().backward()
    assert scale.grad is not None
    assert x.grad is None


def test_new_statistics_are_those_asked_for():
    x, new_mu, new_sigma = drawn(4, 3, 16, 16), drawn(4, 3, seed=1), drawn(4, 3, seed=2).abs() + 0.1
    y = restyle(x, *statistics(x), new_mu, new_sigma)
    mu, sigma = written_out(y)
    torch.testing.assert_close(mu, new_mu, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sigma, new_sigma, rtol=1e-4, atol=1e-5)


def test_no_shift_is_the_identity_bit_for_bit():
    x = drawn(4, 3, 6, 6)
    assert torch.equal(shifted(x, torch.zeros(4, 2, 3), 0.1), x)
    assert torch.equal(shifted(x, torch.zeros(4, 2, 3), None), x)


def test_a_channel_never_flips_its_sign_above_the_floor():
    x = drawn(4, 3, 8, 8)
    shift = torch.zeros(4, 2, 3)
    shift[:, 1] = -100
    mu, sigma = statistics(x)
    y = shifted(x, shift, 0.1)
    torch.testing.assert_close(statistics(y)[1], 0.1 * sigma, rtol=1e-3, atol=1e-4)
    correlation = ((x - mu[..., None, None]) * (y - mu[..., None, None])).sum((2, 3))
    assert (correlation > 0).all()
    flipped = shifted(x, shift, None)
    assert (((x - mu[..., None, None]) * (flipped - mu[..., None, None])).sum((2, 3)) < 0).all()
    assert torch.equal(floored(sigma, sigma, 0.1), sigma)


def test_the_spread_is_the_papers_biased_one():
    values = drawn(7, 3)
    expected = (((values - values.mean(0)) ** 2).sum(0) / 7 + 1e-6).sqrt()
    torch.testing.assert_close(spread(values), expected)
    torch.testing.assert_close(spread(values[:1]), torch.full((3,), 1e-3))


def test_mixstyle_equals_the_paper():
    x, share, partner = drawn(4, 3, 6, 6), torch.tensor([0.1, 0.5, 0.9, 1.0]), torch.randperm(4)
    mu, sigma = written_out(x)
    keep = 1 - share[:, None]
    expected = restyled(
        x,
        mu,
        sigma,
        keep * mu + (1 - keep) * mu[partner],
        keep * sigma + (1 - keep) * sigma[partner],
    )
    torch.testing.assert_close(style_mixed(x, share, partner), expected, rtol=1e-4, atol=1e-5)


def test_offsets_towards_a_partner_are_mixstyle():
    """a = (1 - lambda) (mu_j - mu_i) / S_mu, and likewise for sigma."""
    x, partner, lam = drawn(5, 3, 6, 6), torch.tensor([1, 2, 3, 4, 0]), torch.rand(5, 1)
    mu, sigma = statistics(x)
    a = (1 - lam) * (mu[partner] - mu) / spread(mu)
    b = (1 - lam) * (sigma[partner] - sigma) / spread(sigma)
    shift = torch.stack([a * spread(mu), b * spread(sigma)], 1)
    torch.testing.assert_close(shifted(x, shift, None), style_mixed(x, 1 - lam[:, 0], partner))


def test_mixstyle_takes_statistics_as_constants():
    x = drawn(2, 3, 4, 4).requires_grad_()
    y = style_mixed(x, torch.tensor([0.5, 0.0]), torch.tensor([1, 0]))
    (gradient,) = torch.autograd.grad(y[0].sum(), x)
    assert gradient[1].abs().max() == 0  # nothing reaches the partner
    _, sigma = written_out(x)
    scale = 0.5 * (sigma[0] + sigma[1]) / sigma[0]
    torch.testing.assert_close(gradient[0], scale[:, None, None].expand(3, 4, 4))


def test_random_partners_are_a_permutation():
    found = partners(torch.arange(9), "random", numpy_generator(0, "x"))
    assert sorted(found.tolist()) == list(range(9))


def test_other_domains_partners_are_foreign_and_any_of_them():
    domain = torch.tensor([4, 4, 4, 7, 7, 1])
    seen = {i: set() for i in range(6)}
    for seed in range(200):
        for i, j in enumerate(partners(domain, "other-domain", numpy_generator(seed)).tolist()):
            seen[i].add(j)
    for i in range(6):
        assert seen[i] == {j for j in range(6) if domain[j] != domain[i]}


def test_a_single_domain_has_no_partner_and_says_so():
    with pytest.warns(EvenfieldWarning, match="one domain"):
        found = partners(torch.full((5,), 3), "other-domain", numpy_generator(0))
    assert found.tolist() == list(range(5))


def test_shares_are_beta():
    shares = mixing_shares(numpy_generator(0), 4000, 0.1).double().numpy()
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(0.25 / 1.2, abs=0.01)  # of Beta(0.1, 0.1)


def test_places_are_chosen_independently_and_reproducibly():
    assert list(chosen(("stem", "1"), 1.0, 0, "dsu")) == ["stem", "1"]
    assert not chosen(("stem", "1"), 0.0, 0, "dsu")
    drawn = [tuple(chosen(("stem", "1"), 0.5, seed, "dsu")) for seed in range(400)]
    assert drawn == [tuple(chosen(("stem", "1"), 0.5, seed, "dsu")) for seed in range(400)]
    counts = [drawn.count(kind) for kind in ((), ("stem",), ("1",), ("stem", "1"))]
    assert min(counts) > 70
    assert sum(counts) == 400
    first = chosen(("stem", "1"), 1.0, 0, "dsu")
    assert first["stem"].random() != first["1"].random()


def test_unknown_places_are_refused_before_training(backbone):
    check_places(backbone, ("stem", "2"))
    with pytest.raises(InputError, match="no place '7'"):
        check_places(backbone, ("stem", "7"))
    with pytest.raises(InputError, match="does not say where its stages end"):
        check_places(torch.nn.Conv2d(3, 4, 3), ("stem",))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cnn-small", {"stem": 32, "1": 64, "3": 128}),
        ("resnet18", {"stem": 64, "1": 64, "3": 256}),
    ],
)
def test_widths_are_seen_without_a_trace(name, expected):
    backbone, _ = build_backbone(name, 5)
    before = copy.deepcopy(backbone.state_dict())
    assert widths(backbone, tuple(expected), 5) == expected
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(v, before[key]) for key, v in backbone.state_dict().items())
    assert not any(module._forward_hooks for module in backbone.modules())
