"""What every method must do; a new file in `evenfield/methods/` is tested here with no new line."""

import copy
import pickle

import pytest
import torch

from evenfield.adapt import ADAPTERS
from evenfield.data.fake import fake_batch
from evenfield.methods import METHODS
from evenfield.types import Context


@pytest.fixture(params=list(METHODS))
def method(request, make_backbone):
    cls = METHODS[request.param]
    config = cls.Config(**cls.tested_with)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = make_backbone(3 + cls.extra_channels(config))
        return cls(config, backbone=backbone, d=4, k=3, c=3)


@pytest.fixture
def batch(method):
    large = method.needs.smallest_side > 32
    return fake_batch(method.needs, n=9 if large else 24)


def buffers(method):
    return {name: value.clone() for name, value in method.named_buffers()}


def test_every_parameter_gets_a_gradient(method, batch):
    method.losses(batch, progress=0.5).total.backward()
    wanted = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    assert not [name for name, p in wanted if p.grad is None]
    assert all(torch.isfinite(p.grad).all() for _, p in wanted)


def test_parts_are_named_and_finite(method, batch):
    losses = method.losses(batch, progress=0.5)
    assert losses.total.shape == ()
    assert losses.parts
    assert all(torch.isfinite(part) for part in losses.parts.values())


def test_loss_does_not_switch_the_mode(method, batch):
    for training in (True, False):
        method.train(training)
        before = [module.training for module in method.modules()]  # frozen parts stay in eval mode
        method.losses(batch, progress=0.5)
        assert method.training == training
        assert [module.training for module in method.modules()] == before


def test_eval_mode_leaves_buffers_alone(method, batch):
    method.eval()
    before = buffers(method)
    method.losses(batch, progress=0.5)
    for name, value in method.named_buffers():
        assert torch.equal(value, before[name]), name


def test_loss_does_not_depend_on_the_order_of_items(method, batch):
    shuffled = batch[torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))]
    method.eval()
    torch.testing.assert_close(
        method.losses(batch, progress=0.5).total, method.losses(shuffled, progress=0.5).total
    )


def test_unknown_labels_give_no_risk_and_a_gradient(method, batch):
    batch.label.fill_(-1)
    losses = method.losses(batch, progress=0.5)
    losses.total.backward()
    assert losses.parts.get("risk", 0) == 0
    assert torch.isfinite(losses.total)


def test_it_learns(method, batch, steps):
    history = [x.total.item() for x in steps(method, [batch] * 60, lr=1e-2)]
    assert sum(history[-5:]) < method.learns_to * sum(history[:5])


def test_state_round_trip(method, batch):
    twin = pickle.loads(pickle.dumps(method))
    torch.testing.assert_close(
        twin.losses(batch, progress=0.5).total, method.losses(batch, progress=0.5).total
    )


def test_same_seed_same_bits(method, batch, steps):
    twin = copy.deepcopy(method)
    ours = [x.total for x in steps(method, [batch] * 3, lr=1e-2)]
    theirs = [x.total for x in steps(twin, [batch] * 3, lr=1e-2)]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(method.state_dict().values(), twin.state_dict().values(), strict=True)
    )


def test_autocast_is_finite_and_near(method, batch):
    full = method.losses(batch, progress=0.5).total
    with torch.autocast("cpu", torch.bfloat16):
        half = method.losses(batch, progress=0.5).total
    half.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.requires_grad)
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05)


def test_several_episodes_in_a_batch(method):
    losses = method.losses(fake_batch(method.needs, num_contexts=3), progress=0.5)
    losses.total.backward()
    assert torch.isfinite(losses.total)


def test_validation_needs_no_gradient(method, batch):
    with torch.no_grad():
        total = method.losses(batch, progress=1.0).total
    assert torch.isfinite(total)
    assert not total.requires_grad


def test_native_adapter_exists_and_predicts(method, batch):
    adapter = ADAPTERS[method.native]()
    method.eval()
    before = copy.deepcopy(method.state_dict())
    context = Context(image=batch.image, is_control=batch.is_control)
    adapted = adapter.fit(method.predictor, context)
    log_p = adapted.predict(batch.image)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(len(batch)))
    torch.testing.assert_close(adapted.predict(batch.image[:1]), log_p[:1], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, before[name]) for name, a in method.state_dict().items())
