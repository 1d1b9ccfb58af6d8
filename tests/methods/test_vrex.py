from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from erm_twin import TWO, assert_follows_erm, build
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods.vrex import VREx, population_variance


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=9))
def test_the_penalty_is_the_population_variance(values):
    mean = sum(values) / len(values)
    expected = sum((v - mean) ** 2 for v in values) / len(values)
    ours = population_variance(torch.tensor(values, dtype=torch.float64)).item()
    assert ours == pytest.approx(expected, abs=1e-12)
    assert ours >= 0


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 1.0), (0.19, 1.0), (0.2, 6.0), (1.0, 6.0)])
def test_vrex_equals_the_paper(backbone, progress, factor):
    """Mean and population variance over domains of their mean cross-entropies, in float64."""
    method = build("vrex", backbone, weight=6.0, anneal=0.2)
    batch = fake_batch(seed=3, n=30, num_contexts=3)
    batch.label[:4] = -1
    p = F.log_softmax(method.predictor(batch.image).double(), 1)
    each = -p[torch.arange(30), batch.label]
    known = batch.label >= 0
    risks = torch.stack([each[known & (batch.domain == d)].mean() for d in range(3)])
    losses = method.losses(batch, progress=progress)
    expected = risks.mean() + factor * risks.var(correction=0)
    torch.testing.assert_close(losses.total.double(), expected, rtol=1e-5, atol=1e-6)


def test_vrex_clears_the_optimiser_where_its_weight_jumps(backbone):
    assert build("vrex", backbone).reset_at == 0.1
    assert build("vrex", backbone, anneal=0.4).reset_at == 0.4
    assert build("vrex", backbone, weight=1.0).reset_at is None


def test_without_variance_it_is_erm(make_backbone, steps):
    assert_follows_erm("vrex", make_backbone, steps, weight=0.0)
    assert_follows_erm("vrex", make_backbone, steps, num_domains=1)


def test_an_anneal_beyond_the_training_is_refused():
    with pytest.raises(InputError, match="anneal is 500"):
        VREx.Config(anneal=500)


def test_vrex_does_its_job(make_backbone, steps):
    """Every third label of one domain is wrong: the risks of the two come nearer to each other."""

    def half_wrong(seed):
        batch = fake_batch(TWO, seed=seed, n=36)
        wrong = (batch.domain == 1) & (torch.arange(36) % 4 == 0)
        return replace(batch, label=torch.where(wrong, (batch.label + 1) % 3, batch.label))

    def late_variance(weight):
        method = build("vrex", make_backbone(), weight=weight)
        history = steps(method, [half_wrong(seed) for seed in range(80)], lr=1e-2)
        return sum(x.parts["variance"].item() for x in list(history)[-20:])

    assert late_variance(10.0) < 0.3 * late_variance(0.0)
