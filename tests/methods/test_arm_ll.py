import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from evenfield.data.fake import fake_batch
from evenfield.errors import EvenfieldWarning
from evenfield.methods.arm_bn import ARMBN
from evenfield.methods.arm_ll import ARMLL, learned_loss
from evenfield.nn.norm import normalising, union_rule
from evenfield.types import Context


def make(backbone, cls=ARMLL, **switches):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(cls.Config(**switches), backbone=backbone, d=4, k=3, c=3)


def context_of(batch):
    return Context(image=batch.image, is_control=batch.is_control, name="P1")


def test_the_learned_loss_is_that_of_the_specification():
    layers = [m for m in learned_loss(8, 32) if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(8, 32)] + [(32, 32)] * 2 + [
        (32, 1)
    ]


def test_equals_the_paper(backbone):
    """theta' = theta - 0.1 grad |phi(net(x; theta))|; CE(net(x; theta'), y), in float64."""
    method, batch = make(backbone).double(), fake_batch(ARMLL.needs)
    p, x = method.predictor, batch.image.double()
    names = [n for n, _ in p.named_parameters() if not n.startswith("learned_loss")]
    theta = {n: q for n, q in p.named_parameters() if n in names}
    with normalising(p, union_rule):
        values = p.learned_loss(p(x))
        inner = values.square().sum().sqrt()
        grads = torch.autograd.grad(inner, list(theta.values()))
        moved = {n: q.detach() - 0.1 * g for (n, q), g in zip(theta.items(), grads, strict=True)}
        logits = functional_call(p, moved, (x,))
    expected = F.cross_entropy(logits.float(), batch.label)
    torch.testing.assert_close(method.losses(replace(batch, image=x), progress=0).total, expected)


def test_second_order_gradient_equals_finite_differences(backbone):
    method, batch = make(backbone).double(), fake_batch(ARMLL.needs)
    batch = replace(batch, image=batch.image.double())
    for weight in (method.predictor.learned_loss[0].weight, method.predictor.head.weight):
        method.zero_grad()
        method.losses(batch, progress=0).total.backward()
        i = weight.grad.abs().argmax().item()
        slope, step = weight.grad.flatten()[i].item(), 1e-3
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.view(-1)[i] += sign * step
            values.append(method.losses(batch, progress=0).total.item())
            with torch.no_grad():
                weight.view(-1)[i] -= sign * step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=0.02)


def test_gradient_reaches_the_learned_loss(backbone):
    method = make(backbone)
    method.losses(fake_batch(ARMLL.needs), progress=0).total.backward()
    weights = [m.weight for m in method.predictor.learned_loss if isinstance(m, nn.Linear)]
    assert all(weight.grad.abs().sum() > 0 for weight in weights)


@pytest.mark.parametrize("num_contexts", [1, 3])
def test_inner_lr_zero_is_arm_bn_times_the_number_of_episodes(backbone, num_contexts):
    ours, theirs = make(backbone, inner_lr=0.0), make(copy.deepcopy(backbone), ARMBN)
    theirs.predictor.head.load_state_dict(ours.predictor.head.state_dict())
    batch = fake_batch(ARMLL.needs, num_contexts=num_contexts)
    a, b = ours.losses(batch, progress=0).total, theirs.losses(batch, progress=0).total
    torch.testing.assert_close(a, num_contexts * b)
    a.backward()
    b.backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            ours.get_parameter(name).grad, num_contexts * parameter.grad, rtol=1e-4, atol=1e-6
        )
    adapted = ours.eval().predictor.condition(context_of(batch)).eval()
    with normalising(theirs.predictor, union_rule):
        torch.testing.assert_close(
            adapted(batch.image), theirs.predictor(batch.image), rtol=1e-4, atol=1e-4
        )


def test_conditioned_prediction_equals_the_episode(backbone):
    method, batch = make(backbone).eval(), fake_batch(ARMLL.needs)
    conditioned = method.predictor.condition(context_of(batch)).eval()
    loss = F.cross_entropy(conditioned(batch.image), batch.label)
    torch.testing.assert_close(loss, method.losses(batch, progress=0).total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(conditioned(batch.image[:1]), conditioned(batch.image)[:1])
    assert not torch.equal(conditioned.head.weight, method.predictor.head.weight)


def test_conditioning_leaves_the_source_alone_and_works_without_gradients(backbone):
    method, batch = make(backbone), fake_batch(ARMLL.needs)
    before = copy.deepcopy(method.state_dict())
    with torch.inference_mode():
        image = batch.image + 0
        context = Context(image=image, is_control=batch.is_control)
        conditioned = method.predictor.condition(context)
    outside = method.predictor.condition(context_of(batch))
    for ours, theirs in zip(conditioned.parameters(), outside.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_support_limits_the_images_of_the_step(backbone):
    method = make(backbone, support=8)
    batch = fake_batch(ARMLL.needs, n=24)
    ours = method.predictor.condition(context_of(batch))
    theirs = method.predictor.condition(context_of(batch[::3]))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_fallbacks_are_stated(backbone):
    method, batch = make(backbone), fake_batch(ARMLL.needs)
    controls = Context(image=batch.image, is_control=torch.ones(len(batch), dtype=torch.bool))
    with pytest.warns(EvenfieldWarning, match="no perturbed image"):
        method.predictor.condition(controls)
    empty = method.predictor.condition(context_of(batch[:0]))
    assert torch.equal(empty.head.weight, method.predictor.head.weight)


def test_it_does_its_job(make_backbone, steps):
    """The learned step lowers the error on plates never seen: its loss needs no label."""
    method = make(make_backbone())
    list(steps(method, [fake_batch(ARMLL.needs, seed=i) for i in range(60)], lr=5e-3))
    with_step, without = 0.0, 0.0
    for seed in range(1000, 1010):
        batch = fake_batch(ARMLL.needs, seed=seed)
        with torch.no_grad():
            with_step += method.losses(batch, progress=1).total.item()
            with normalising(method.predictor, union_rule):
                without += F.cross_entropy(method.predictor(batch.image), batch.label).item()
    assert with_step < 0.9 * without
