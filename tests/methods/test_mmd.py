import math
from itertools import combinations

import torch
from erm_twin import TWO, assert_follows_erm, build, generator
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data.fake import fake_batch
from evenfield.methods.mmd import mean_pairwise_mmd


def mean_kernel(a, b):
    """mean_ij sum_gamma exp(-gamma |a_i - b_j|^2), written out."""
    total = 0.0
    for x in a.tolist():
        for y in b.tolist():
            squared = sum((p - q) ** 2 for p, q in zip(x, y, strict=True))
            total += sum(math.exp(-(10.0**power) * squared) for power in range(-3, 4))
    return total / (len(a) * len(b))


def reference(s, t):
    """The biased statistic: k(s, s') + k(t, t') - 2 k(s, t), means over all pairs."""
    return mean_kernel(s, s) + mean_kernel(t, t) - 2 * mean_kernel(s, t)


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_mmd_equals_the_formula(sizes, seed):
    domain = torch.repeat_interleave(torch.tensor([5, 2, 9, 0])[: len(sizes)], torch.tensor(sizes))
    z = torch.randn(len(domain), 3, generator=generator(seed)).double()
    shuffle = torch.randperm(len(domain), generator=generator(seed))
    groups = [z[domain == code] for code in domain.unique()]
    pairs = [reference(s, t) for s, t in combinations(groups, 2)]
    ours = mean_pairwise_mmd(z[shuffle], domain[shuffle])
    torch.testing.assert_close(ours.item(), sum(pairs) / len(pairs), rtol=1e-6, atol=1e-9)


def test_a_set_and_itself_have_no_distance():
    s = 30 * torch.randn(7, 16, generator=generator(0))
    z, domain = torch.cat([s, s.flip(0)]), torch.arange(2).repeat_interleave(7)
    torch.testing.assert_close(mean_pairwise_mmd(z, domain), torch.zeros(()), rtol=0, atol=1e-5)


def test_mmd_grows_with_the_distance_and_sees_the_means():
    s, domain = torch.randn(9, 4, generator=generator(0)), torch.arange(2).repeat_interleave(9)
    near, far = (mean_pairwise_mmd(torch.cat([s, s + by]), domain) for by in (0.1, 1.0))
    assert 0 < near < far


def test_its_gradient_is_finite_between_equal_features_and_right_elsewhere():
    z = torch.randn(6, 2, generator=generator(3)).double()
    z[3] = z[0]
    z.requires_grad_()
    domain = torch.tensor([0, 0, 0, 1, 1, 1])
    mean_pairwise_mmd(z, domain).backward()
    step = 1e-6
    for place in ((0, 0), (1, 1), (4, 0)):
        moved = [z.detach().clone() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (mean_pairwise_mmd(m, domain).item() for m in moved)
        assert math.isclose(z.grad[place].item(), (up - down) / (2 * step), abs_tol=1e-4)


def test_one_domain_has_no_mmd():
    z = torch.randn(6, 4, generator=generator(0))
    assert mean_pairwise_mmd(z, torch.full((6,), 3)) == 0


def test_without_mmd_it_is_erm(make_backbone, steps):
    assert_follows_erm("mmd", make_backbone, steps, weight=0.0)
    assert_follows_erm("mmd", make_backbone, steps, num_domains=1)


def test_mmd_does_its_job(make_backbone, steps):
    def gap(weight):
        method = build("mmd", make_backbone(), weight=weight)
        batches = [fake_batch(TWO, seed=seed) for seed in range(80)]
        return [x.parts["mmd"].item() for x in steps(method, batches, lr=1e-2)][-20:]

    assert sum(gap(3.0)) < 0.5 * sum(gap(0.0))
