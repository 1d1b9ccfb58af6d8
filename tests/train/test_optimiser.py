import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from evenfield.config import TrainConfig
from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.train.loop import optimise
from evenfield.train.optimiser import optimiser_for, rate_share, resets, set_rates


@pytest.fixture
def method(backbone):
    cls = METHODS["erm"]
    return cls(cls.Config(), backbone=backbone, d=4, k=3, c=3)


@pytest.mark.parametrize(
    ("schedule", "warmup", "shares"),
    [
        ("constant", 0.0, [1, 1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", 0.0, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
        ("constant", 0.5, [0, 0.5, 1, 1, 1]),
        ("linear", 0.5, [0, 0.5, 1, 0.5, 0]),
        ("cosine", 0.25, [0, 1, 0.75, 0.25, 0]),
        ("linear", 1.0, [0, 0.25, 0.5, 0.75, 0]),
    ],
)
def test_the_learning_rate_over_the_run(schedule, warmup, shares):
    config = TrainConfig(schedule=schedule, warmup=warmup)
    found = [rate_share(config, place / 4) for place in range(5)]
    assert found == pytest.approx(shares)


def test_the_published_warm_up_of_rxrx1():
    """Adam 1e-3, 5,415 of 90 x 564 steps of warm-up from 0, then a cosine to 0 (WILDS, RxRx1)."""
    total = 90 * (40612 // 72)
    config = TrainConfig(lr=1e-3, schedule="cosine", warmup=5415 / total)

    def published(step):
        if step < 5415:
            return step / 5415
        return 0.5 * (1 + math.cos(math.pi * (step - 5415) / (total - 5415)))

    for step in (0, 1, 2707, 5414, 5415, 5416, 28000, total - 1):
        assert rate_share(config, step / total) == pytest.approx(published(step), abs=1e-9)


def test_groups_keep_their_own_rates_under_the_schedule(method):
    heads, rest = (
        list(method.predictor.head.parameters()),
        list(method.predictor.backbone.parameters()),
    )
    method.groups = lambda: [{"params": rest}, {"params": heads, "lr": 0.5, "weight_decay": 0.1}]
    optimiser = optimiser_for(method, TrainConfig(lr=2.0, weight_decay=0.25))
    for share in (1.0, 0.5, 0.5):  # twice: a share of the first rate, not of the one before
        set_rates(optimiser, share)
    assert [group["lr"] for group in optimiser.param_groups] == [1.0, 0.25]
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.25, 0.1]


def after(method, config, num=3):
    """The weights after some steps on fixed batches."""
    method.eval()
    optimiser = optimiser_for(method, config)
    batches = [fake_batch(method.needs, seed=seed) for seed in range(num)]
    list(optimise(method, optimiser, batches, total=num))
    return [p.detach().clone() for p in method.parameters()]


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_each_optimiser_follows_its_formula(make_backbone, kind):
    """Three steps in float64, letter by letter, with weight decay passed on."""
    lr, decay, momentum = 1e-2, 0.1, 0.8
    cls = METHODS["erm"]

    def fresh():
        torch.manual_seed(0)
        return cls(cls.Config(), backbone=make_backbone(), d=4, k=3, c=3)

    config = TrainConfig(optimiser=kind, lr=lr, weight_decay=decay, momentum=momentum)
    ours = after(fresh(), config)
    method = fresh().eval()
    weights = list(method.parameters())
    m, v = ([torch.zeros_like(w, dtype=torch.float64) for w in weights] for _ in range(2))
    for t in (1, 2, 3):
        method.zero_grad()
        method.losses(fake_batch(method.needs, seed=t - 1), progress=0).total.backward()
        for place, weight in enumerate(weights):
            w, g = weight.detach().double(), weight.grad.double()
            if kind == "sgd":
                m[place] = momentum * m[place] + g + decay * w
                step = m[place]
            else:
                if kind == "adam":
                    g = g + decay * w  # coupled: the decay goes through the moments
                else:
                    w = w - lr * decay * w  # decoupled
                m[place] = 0.9 * m[place] + 0.1 * g
                v[place] = 0.999 * v[place] + 0.001 * g**2
                step = m[place] / (1 - 0.9**t) / ((v[place] / (1 - 0.999**t)).sqrt() + 1e-8)
            weight.data = (w - lr * step).float()
    for one, two in zip(ours, weights, strict=True):
        torch.testing.assert_close(one, two.data, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_weight_decay_is_never_dropped(make_backbone, kind):
    """The released code of ContriMix configures 1e-3 and trains with AdamW's default."""
    cls = METHODS["erm"]
    method = cls(cls.Config(), backbone=make_backbone(), d=4, k=3, c=3)
    optimiser = optimiser_for(method, TrainConfig(optimiser=kind, weight_decay=1e-3))
    assert [group["weight_decay"] for group in optimiser.param_groups] == [1e-3]
    assert optimiser_for(method, TrainConfig(optimiser=kind)).param_groups[0]["weight_decay"] == 0


def test_what_does_not_ask_for_a_gradient_is_left_alone(method):
    for weight in method.predictor.backbone.parameters():
        weight.requires_grad_(False)
    before = [p.clone() for p in method.predictor.backbone.parameters()]
    optimiser = optimiser_for(method, TrainConfig(weight_decay=0.5, lr=0.1))
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 2
    list(optimise(method, optimiser, [fake_batch(method.needs)], total=1))
    for one, two in zip(before, method.predictor.backbone.parameters(), strict=True):
        assert torch.equal(one, two)
    for weight in method.parameters():
        weight.requires_grad_(False)
    with pytest.raises(InputError, match="ERM has no parameter that asks for a gradient"):
        optimiser_for(method, TrainConfig())


@pytest.mark.parametrize(
    ("name", "value"), [("warmup", 1.5), ("momentum", -0.1), ("weight_decay", -1.0), ("clip", 0.0)]
)
def test_a_setting_out_of_range_is_named(method, name, value):
    with pytest.raises(InputError, match=f"--train.{name.replace('_', '-')} is {value}"):
        optimiser_for(method, replace(TrainConfig(), **{name: value}))


def test_resets_once_wherever_the_point_lies():
    for total in (1, 7, 30):
        for at in (0.0, 0.1, 1 / 3, 0.5, 0.99):
            due = [step for step in range(total) if resets(at, step, total)]
            reached = [step for step in range(total) if step / total >= at]
            assert due == reached[:1]
    assert not any(resets(None, step, 9) for step in range(9))


def test_fused_kernels_are_used_on_the_processor():
    linear = nn.Linear(2, 2)
    linear.groups = lambda: [{"params": list(linear.parameters())}]
    for kind in ("adam", "adamw", "sgd"):
        assert optimiser_for(linear, TrainConfig(optimiser=kind)).param_groups[0]["fused"]
