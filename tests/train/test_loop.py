import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from evenfield.config import TrainConfig
from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.train.loop import State, device_of, optimise, run, steps
from evenfield.types import Losses


@pytest.fixture
def method(backbone):
    cls = METHODS["erm"]
    return cls(cls.Config(), backbone=backbone, d=4, k=3, c=3)


def gradients(method):
    return [p.grad.clone() for p in method.parameters()]


def test_accumulated_gradients_are_those_of_the_mean_loss(method):
    batches = [fake_batch(method.needs, seed=seed) for seed in range(8)]
    method.eval()  # running statistics fixed, so that the batches do not depend on each other
    frozen = torch.optim.SGD(method.parameters(), lr=0.0)
    list(optimise(method, frozen, batches, total=1, accumulate=8))
    ours = gradients(method)
    method.zero_grad()
    torch.stack([method.losses(b, progress=0).total for b in batches]).mean().backward()
    for one, two in zip(ours, gradients(method), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_reported_parts_are_means_over_the_step(method):
    method.eval()
    batches = [fake_batch(method.needs, seed=seed) for seed in range(4)]
    expected = sum(method.losses(b, progress=0).total.item() for b in batches) / 4
    frozen = torch.optim.SGD(method.parameters(), lr=0.0)
    parts = next(optimise(method, frozen, batches, total=1, accumulate=4))
    assert parts["total"] == pytest.approx(expected, rel=1e-5)


def test_steps_learn(method):
    batch = fake_batch(method.needs)
    history = [x.total.item() for x in steps(method, (batch for _ in range(60)), total=60, lr=1e-2)]
    assert history[-1] < 0.5 * history[0]


def test_the_gradient_is_clipped_once_for_all_passes_of_a_step(method):
    batches = [fake_batch(method.needs, seed=seed) for seed in range(2)]
    method.eval()
    frozen = torch.optim.SGD(method.parameters(), lr=0.0)
    list(optimise(method, frozen, batches, total=1, accumulate=2))
    whole = gradients(method)
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in whole]))
    list(optimise(method, frozen, batches, total=1, accumulate=2, clip=float(norm) / 4))
    for one, two in zip(gradients(method), whole, strict=True):
        torch.testing.assert_close(one, two / 4, rtol=1e-3, atol=1e-7)
    list(optimise(method, frozen, batches, total=1, accumulate=2, clip=float(norm) * 2))
    for one, two in zip(gradients(method), whole, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("at", [0.0, 0.3, 0.31, 1.0])
@pytest.mark.parametrize("start", [0, 3, 4])
def test_the_state_is_cleared_exactly_once_where_the_method_says_so(method, at, start, monkeypatch):
    monkeypatch.setattr(type(method), "reset_at", at)
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-3)
    batches = (fake_batch(method.needs, seed=seed) for seed in range(10))
    first = next(iter(method.parameters()))
    ages = []
    for _ in optimise(method, optimiser, batches, total=10, start=start):
        ages.append(int(optimiser.state[first]["step"]))
    # The age of Adam's moments falls to 1 at the first step with progress >= at, and only there.
    due = [step for step in range(start, 10) if step / 10 >= at and (step - 1) / 10 < at]
    expected, age = [], 0
    for step in range(start, 10):
        age = 1 if step in due else age + 1
        expected.append(age)
    assert ages == expected


def test_a_loss_that_is_not_finite_stops_with_advice(method):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def losses(self, batch, *, progress):
            return Losses(total=self.weight * math.nan, parts={})

        def after_step(self, progress):
            pass

        reset_at = None

    broken = Broken()
    batch = fake_batch(method.needs)
    config = replace(TrainConfig(), epochs=1, accumulate=1, precision="float32")
    with pytest.raises(InputError, match=r"loss is nan at step 1"):
        list(
            run(
                broken,
                torch.optim.SGD(broken.parameters(), lr=0.1),
                (batch for _ in range(9)),
                config,
                State(),
                passes_per_epoch=4,
                validate=lambda: {},
                save=lambda which: None,
            )
        )


def test_cuda_that_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="'cuda:1' is not there"):
        device_of("cuda:1")
    assert device_of("auto").type == "cpu"
