import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from evenfield.config import TrainConfig
from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.train.loop import State, device_of, optimise, rate, run, steps
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


@pytest.mark.parametrize(("at", "share"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_cosine(at, share):
    assert rate(TrainConfig(lr=2.0, schedule="cosine"), at) == pytest.approx(2.0 * share)
    assert rate(TrainConfig(lr=2.0), at) == 2.0


def test_a_loss_that_is_not_finite_stops_with_advice(method):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def losses(self, batch, *, progress):
            return Losses(total=self.weight * math.nan, parts={})

        def after_step(self, progress):
            pass

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
                validate=lambda: 0.0,
                save=lambda which: None,
            )
        )


def test_cuda_that_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="'cuda:1' is not there"):
        device_of("cuda:1")
    assert device_of("auto").type == "cpu"
