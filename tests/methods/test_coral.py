from dataclasses import replace
from itertools import combinations

import pytest
import torch
from erm_twin import TWO, assert_follows_erm, build, generator
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods.coral import DeepCORAL, mean_pairwise_coral
from evenfield.nn.distances import coral_distance


def reference(s, t):
    """Eqs. (1)-(3) of arXiv:1607.01719, letter by letter, in float64."""
    s, t = s.double(), t.double()
    one_s, one_t = torch.ones(1, len(s)).double(), torch.ones(1, len(t)).double()
    c_s = (s.T @ s - (one_s @ s).T @ (one_s @ s) / len(s)) / (len(s) - 1)
    c_t = (t.T @ t - (one_t @ t).T @ (one_t @ t) / len(t)) / (len(t) - 1)
    return torch.linalg.matrix_norm(c_s - c_t) ** 2 / (4 * s.shape[1] ** 2)


@settings(deadline=None, max_examples=30)
@given(n_s=st.integers(2, 9), n_t=st.integers(2, 9), d=st.integers(1, 6), seed=st.integers(0, 99))
def test_coral_equals_the_paper(n_s, n_t, d, seed):
    g = generator(seed)
    s, t = torch.randn(n_s, d, generator=g), torch.randn(n_t, d, generator=g)
    expected = reference(s, t)
    torch.testing.assert_close(coral_distance(s, t).double(), expected, rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_it_is_the_mean_over_the_pairs_of_domains_with_a_covariance(sizes, seed):
    domain = torch.repeat_interleave(
        torch.tensor([7, 2, 9, 0, 4])[: len(sizes)], torch.tensor(sizes)
    )
    z = torch.randn(len(domain), 3, generator=generator(seed)).double()
    shuffle = torch.randperm(len(domain), generator=generator(seed))
    groups = [z[domain == code] for code in domain.unique() if (domain == code).sum() > 1]
    pairs = [reference(s, t) for s, t in combinations(groups, 2)]
    expected = torch.stack(pairs).mean() if pairs else torch.zeros(()).double()
    torch.testing.assert_close(mean_pairwise_coral(z[shuffle], domain[shuffle]), expected)


def test_coral_is_zero_for_equal_features_and_symmetric():
    s, t = torch.randn(5, 3, generator=generator(0)), torch.randn(8, 3, generator=generator(1))
    assert coral_distance(s, s) == 0
    assert coral_distance(s, t) == coral_distance(t, s) > 0


def test_one_domain_has_no_coral_distance():
    z = torch.randn(6, 4, generator=generator(0), requires_grad=True)
    assert mean_pairwise_coral(z, torch.zeros(6, dtype=torch.long)) == 0


def test_the_loss_is_eq_6_and_unlabelled_images_take_part(backbone):
    method, batch = build("coral", backbone, weight=0.7), fake_batch(TWO)
    label = torch.where(torch.arange(len(batch)) < 6, -1, batch.label)
    losses = method.losses(replace(batch, label=label), progress=0.5)
    z = method.predictor.features(batch.image)
    coral = reference(z[batch.domain == 0], z[batch.domain == 1])
    known = method.predictor.head(z)[6:]
    risk = torch.nn.functional.cross_entropy(known, batch.label[6:])
    torch.testing.assert_close(losses.total.double(), risk + 0.7 * coral, rtol=1e-4, atol=1e-6)


def test_without_coral_it_is_erm(make_backbone, steps):
    assert_follows_erm("coral", make_backbone, steps, weight=0.0)
    assert_follows_erm("coral", make_backbone, steps, num_domains=1)


def test_a_negative_weight_of_coral_is_refused():
    with pytest.raises(InputError, match="weight is -1"):
        DeepCORAL.Config(weight=-1.0)


def test_coral_does_its_job(make_backbone, steps):
    def gap(weight):
        method = build("coral", make_backbone(), weight=weight)
        batches = [fake_batch(TWO, seed=seed) for seed in range(100)]
        return [x.parts["coral"].item() for x in steps(method, batches, lr=1e-2)][-20:]

    assert sum(gap(10.0)) < 0.2 * sum(gap(0.0))
