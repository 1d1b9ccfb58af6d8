from dataclasses import replace
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from erm_twin import TWO, assert_follows_erm, build, generator
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data.fake import fake_batch
from evenfield.methods.base import mean_of
from evenfield.methods.irm import penalty_of, scale_slope


def risk_of(logits, label, w):
    return F.cross_entropy(w * logits, label)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 6), k=st.integers(2, 5), seed=st.integers(0, 99))
def test_the_slope_is_the_derivative_in_the_scale_of_the_logits(n, k, seed):
    logits = 3 * torch.randn(n, k, generator=generator(seed)).double()
    label = torch.randint(k, (n,), generator=generator(seed + 1))
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(risk_of(logits, label, w), w)
    torch.testing.assert_close(scale_slope(logits, label).mean(), expected)


def reference(logits, batch, kind):
    """(IRMv1) by differentiating twice, domain by domain, in float64."""
    penalties = []
    for code in batch.domain.unique():
        mine = (batch.domain == code) & (batch.label >= 0)
        order = batch.row[mine].argsort()
        z, y = logits[mine][order], batch.label[mine][order]
        w = torch.ones((), dtype=torch.float64, requires_grad=True)
        halves = [(z, y), (z, y)] if kind == "squared" else [(z[::2], y[::2]), (z[1::2], y[1::2])]
        slopes = [
            torch.autograd.grad(risk_of(*half, w), w, create_graph=True)[0] for half in halves
        ]
        penalties.append(slopes[0] * slopes[1])
    return torch.stack(penalties).mean()


@pytest.mark.parametrize("kind", ["squared", "halves"])
@pytest.mark.parametrize(("progress", "factor"), [(0.0, 1.0), (0.3, 20.0)])
def test_irm_and_its_gradient_equal_the_paper(backbone, kind, progress, factor):
    method = build("irm", backbone, weight=20.0, anneal=0.3, penalty=kind)
    batch = fake_batch(seed=3, n=30, num_contexts=3)[torch.randperm(30, generator=generator(0))]
    batch.label[:4] = -1
    weight = method.predictor.head.weight
    logits = method.predictor(batch.image).double()
    risks = [
        risk_of(logits[m], batch.label[m], 1)
        for m in ((batch.domain == d) & (batch.label >= 0) for d in range(3))
    ]
    expected = sum(risks) / 3 + factor * reference(logits, batch, kind)
    losses = method.losses(batch, progress=progress)
    torch.testing.assert_close(losses.total.double(), expected, rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(x, weight)[0] for x in (losses.total, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_squared_penalty_is_not_negative_and_the_halves_are_unbiased():
    """Over all orders, the mean product of two halves is that of two different images' slopes."""
    slope = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    assert penalty_of(slope, "squared") == slope.mean() ** 2
    orders = [list(order) for order in permutations(range(4))]
    mean = mean_of(torch.stack([penalty_of(slope[order], "halves") for order in orders]))
    pairs = [slope[i] * slope[j] for i in range(4) for j in range(4) if i != j]
    torch.testing.assert_close(mean, torch.stack(pairs).mean())
    assert penalty_of(torch.tensor([1.0, -1.0]), "halves") < 0


def test_one_image_of_a_domain_has_no_second_half():
    assert penalty_of(torch.tensor([3.0]), "halves") == 0
    assert penalty_of(torch.tensor([3.0]), "squared") == 9


@pytest.mark.parametrize("training", [True, False])
def test_halves_do_not_depend_on_the_order_in_the_batch(backbone, training):
    method = build("irm", backbone, penalty="halves").train(training)
    batch = fake_batch(TWO, seed=1)
    shuffled = batch[torch.randperm(len(batch), generator=generator(0))]
    one, two = (method.losses(b, progress=0).parts["penalty"] for b in (batch, shuffled))
    torch.testing.assert_close(one, two)
    moved = replace(batch, row=batch.row.flip(0) * 7 % 24)  # other rows, other halves
    assert not torch.isclose(one, method.losses(moved, progress=0).parts["penalty"])


def test_irm_clears_the_optimiser_where_its_weight_jumps(backbone):
    assert build("irm", backbone, weight=100.0).reset_at == 0.1
    assert build("irm", backbone).reset_at is None


def test_without_penalty_irm_is_erm(make_backbone, steps):
    for kind in ("squared", "halves"):
        assert_follows_erm("irm", make_backbone, steps, weight=0.0, penalty=kind)


def test_irm_does_its_job(make_backbone, steps):
    """Every fourth label of one domain is wrong: it wants smaller logits than the other."""

    def partly_wrong(seed):
        batch = fake_batch(TWO, seed=seed, n=36)
        wrong = (batch.domain == 1) & (torch.arange(36) % 4 == 0)
        return replace(batch, label=torch.where(wrong, (batch.label + 1) % 3, batch.label))

    def late_penalty(weight):
        method = build("irm", make_backbone(), weight=weight)
        history = steps(method, [partly_wrong(seed) for seed in range(80)], lr=1e-2)
        return sum(x.parts["penalty"].item() for x in list(history)[-20:])

    assert late_penalty(20.0) < 0.5 * late_penalty(0.0)
