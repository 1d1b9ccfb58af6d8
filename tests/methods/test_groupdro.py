import copy
import math
from dataclasses import replace

import pytest
import torch
from erm_twin import TWO, assert_follows_erm, build

from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods.base import domain_risks


def recoded(batch, codes):
    return replace(batch, domain=torch.tensor(codes)[batch.domain])


def test_groupdro_equals_algorithm_1(backbone):
    """All domains in every batch: q_d <- q_d exp(eta R_d) / sum, then sum_d q_d R_d, in float64."""
    method = build("groupdro", backbone, step_size=0.5)
    q = [1 / 3] * 3
    for seed in range(4):
        batch = recoded(fake_batch(seed=seed, n=27, num_contexts=3), [5, 0, 11])
        batch.label[:3] = -1
        with torch.no_grad():
            risks = domain_risks(method.predictor(batch.image), batch.label, batch.domain).tolist()
        q = [weight * math.exp(0.5 * risk) for weight, risk in zip(q, risks, strict=True)]
        q = [weight / sum(q) for weight in q]
        losses = method.losses(batch, progress=0.5)
        expected = sum(weight * risk for weight, risk in zip(q, risks, strict=True))
        assert losses.total.item() == pytest.approx(expected, rel=1e-4)
        assert losses.parts["worst"].item() == pytest.approx(max(risks), rel=1e-4)
        assert method.weights[[0, 5, 11]].tolist() == pytest.approx(q, rel=1e-4)
        assert method.weights.sum().item() == pytest.approx(1)


def test_without_steps_the_weights_stay_uniform(backbone):
    method = build("groupdro", backbone, step_size=0.0)
    for seed in range(3):
        method.losses(fake_batch(seed=seed, n=36, num_contexts=4), progress=0.5)
    assert method.weights[:4].tolist() == pytest.approx([0.25] * 4)
    assert method.weights[4:].count_nonzero() == 0


def test_batches_of_one_domain_estimate_the_weighted_sum(backbone):
    """Uniformly drawn domains, one a batch: the mean loss is sum_d q_d R_d."""
    method = build("groupdro", backbone).eval()  # in eval mode the weights stay as they are
    method.met[:3] = True
    method.log_weight[:3] = torch.tensor([0.2, 0.5, 0.3]).log()
    batch = fake_batch(n=27, num_contexts=3)
    whole = method.losses(batch, progress=0).total
    parts = [method.losses(batch[batch.domain == d], progress=0).total for d in range(3)]
    risks = domain_risks(method.predictor(batch.image), batch.label, batch.domain)
    torch.testing.assert_close(whole, (torch.tensor([0.2, 0.5, 0.3]) * risks).sum())
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_a_new_domain_enters_with_the_mean_weight(backbone):
    method = build("groupdro", backbone, step_size=1.0)
    batch = fake_batch(n=27, num_contexts=3)
    method.losses(batch[batch.domain != 2], progress=0)
    before = method.weights[:2] / method.weights[:2].mean()
    assert before[0] != before[1]
    entered = method.losses(batch[batch.domain == 2], progress=0).parts["worst"].detach()
    after = method.weights[:3] / method.weights[:2].mean()
    torch.testing.assert_close(after[:2], before)
    torch.testing.assert_close(after[2], entered.exp())


def test_domains_never_met_are_judged_with_the_mean_weight(backbone):
    method, batch = build("groupdro", backbone, step_size=2.0, num_domains=3), fake_batch(TWO)
    method.losses(batch, progress=0)
    method.eval()
    state = copy.deepcopy(method.state_dict())
    new = recoded(batch, [2, 5000])
    risks = domain_risks(method.predictor(new.image), new.label, new.domain)
    torch.testing.assert_close(method.losses(new, progress=1).total, risks.mean())
    assert all(torch.equal(v, state[name]) for name, v in method.state_dict().items())


def test_more_domains_than_weights_are_refused(backbone):
    method = build("groupdro", backbone, num_domains=4)
    with pytest.raises(InputError, match=r"code 4[\s\S]*--options.num-domains 5"):
        method.losses(recoded(fake_batch(TWO), [0, 4]), progress=0)


def test_a_resumed_training_goes_on_exactly(make_backbone):
    batches = [fake_batch(TWO, seed=seed) for seed in range(4)]
    whole = build("groupdro", make_backbone(), step_size=0.3)
    for batch in batches[:2]:
        whole.losses(batch, progress=0)
    resumed = build("groupdro", make_backbone(), step_size=0.3)
    resumed.load_state_dict(whole.state_dict())
    for batch in batches[2:]:
        one, two = (m.losses(batch, progress=0).total for m in (whole, resumed))
        assert torch.equal(one, two)
    assert torch.equal(whole.weights, resumed.weights)


def test_unlabelled_batches_move_no_weight(backbone):
    method = build("groupdro", backbone)
    losses = method.losses(replace(fake_batch(TWO), label=torch.full((24,), -1)), progress=0)
    assert losses.total == losses.parts["worst"] == 0
    assert not method.met.any()


def test_equal_weights_are_erm(make_backbone, steps):
    assert_follows_erm("groupdro", make_backbone, steps, step_size=0.0)
    assert_follows_erm("groupdro", make_backbone, steps, num_domains=1)


def test_groupdro_does_its_job(make_backbone, steps):
    """A third of the labels of one domain is wrong: its risk falls, at the cost of the other's."""

    def partly_wrong(seed):
        batch = fake_batch(TWO, seed=seed, n=36)
        wrong = (batch.domain == 1) & (torch.arange(36) % 4 == 0)
        return replace(batch, label=torch.where(wrong, (batch.label + 1) % 3, batch.label))

    def late_worst(step_size):
        method = build("groupdro", make_backbone(), step_size=step_size)
        history = steps(method, [partly_wrong(seed) for seed in range(80)], lr=1e-2)
        return sum(x.parts["worst"].item() for x in list(history)[-20:])

    assert late_worst(0.5) < 0.95 * late_worst(0.0)
