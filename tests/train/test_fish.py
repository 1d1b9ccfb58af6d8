import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from evenfield.config import TrainConfig
from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.seeds import generator
from evenfield.train.fish import by_domain, check_fish
from evenfield.train.loop import optimise
from evenfield.train.optimiser import optimiser_for
from evenfield.types import Losses


@pytest.fixture
def method(backbone):
    cls = METHODS["erm"]
    torch.manual_seed(0)
    return cls(cls.Config(), backbone=backbone, d=4, k=3, c=3).eval()


def batch(seed=0, domains=3):
    return fake_batch(seed=seed, n=18, num_contexts=domains)


def fish(method, meta_lr, *, batches=None, **settings):
    optimiser = optimiser_for(method, TrainConfig(lr=1e-2))
    batches = batches or [batch()]
    return list(
        optimise(method, optimiser, batches, total=len(batches), meta_lr=meta_lr, **settings)
    )


def clone_of(method, parts, lr=1e-2):
    """Inner steps on a deep copy with plain Adam: the paper's theta'."""
    clone = copy.deepcopy(method)
    inner = torch.optim.Adam(clone.parameters(), lr=lr)
    for part in parts:
        inner.zero_grad()
        clone.losses(part, progress=0).total.backward()
        inner.step()
    return [p.detach() for p in clone.parameters()]


def weights(method):
    return [p.detach().clone() for p in method.parameters()]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_the_weights_move_by_the_share_of_what_a_clone_does(method, share):
    before, clone = weights(method), clone_of(method, by_domain(batch()))
    fish(method, share)
    for theta, inner, now in zip(before, clone, method.parameters(), strict=True):
        torch.testing.assert_close(now.data, theta + share * (inner - theta), rtol=1e-5, atol=1e-6)


def test_share_zero_leaves_the_weights_and_one_is_the_clone_bit_for_bit(method):
    before = weights(method)
    fish(method, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))
    other = copy.deepcopy(method)
    fish(method, 1.0)
    plain = optimiser_for(other, TrainConfig(lr=1e-2))
    list(optimise(other, plain, by_domain(batch()), total=3))
    for one, two in zip(method.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_one_domain_and_share_one_is_plain_training(method):
    other = copy.deepcopy(method)
    many = [batch(seed, domains=1) for seed in range(3)]
    fish(method, 1.0, batches=many)
    list(optimise(other, optimiser_for(other, TrainConfig(lr=1e-2)), many, total=3))
    for one, two in zip(method.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


class Quadratics(nn.Module):
    """f_i(w) = (w - c_i)^T A_i (w - c_i) / 2 for domain i."""

    reset_at = None

    def __init__(self):
        super().__init__()
        random = generator(0, "quadratics")
        root = torch.randn(2, 3, 3, generator=random, dtype=torch.float64)
        self.a = root @ root.mT
        self.c = torch.randn(2, 3, generator=random, dtype=torch.float64)
        self.w = nn.Parameter(torch.randn(3, generator=random, dtype=torch.float64))

    def losses(self, batch, *, progress):
        place = int(batch.domain[0])
        gap = self.w - self.c[place]
        return Losses(total=gap @ self.a[place] @ gap / 2, parts={})

    def after_step(self, progress):
        pass


def test_a_step_raises_the_inner_product_of_the_domains_gradients():
    """Two SGD steps of rate a move, in the mean over both orders, by

    -a (g1 + g2) + a^2 / 2 d(g1 . g2)/dw: what the paper proves to second order is exact here.
    """
    rate, moved = 1e-2, {}
    for seed in range(20):
        fresh, one = Quadratics(), batch(seed, domains=2)
        sgd = torch.optim.SGD(fresh.parameters(), lr=rate)
        before = fresh.w.detach().clone()
        list(optimise(fresh, sgd, [one], total=1, meta_lr=1.0))
        moved[int(by_domain(one)[0].domain[0])] = fresh.w.detach() - before
    assert set(moved) == {0, 1}
    model = Quadratics()
    g = [model.a[i] @ (model.w - model.c[i]).detach() for i in range(2)]
    of_product = model.a[0] @ g[1] + model.a[1] @ g[0]
    expected = -rate * (g[0] + g[1]) + rate**2 / 2 * of_product
    torch.testing.assert_close((moved[0] + moved[1]) / 2, expected)


def test_each_part_is_one_domain_with_a_seed_of_its_own_in_a_drawn_order():
    orders = set()
    for seed in range(20):
        whole = batch(seed, domains=4)
        parts = by_domain(whole)
        assert sorted(torch.cat([part.row for part in parts]).tolist()) == whole.row.tolist()
        assert all(len(part.domain.unique()) == 1 for part in parts)
        assert len({part.seed for part in parts} | {whole.seed}) == 5
        orders.add(tuple(int(part.domain[0]) for part in parts))
        again = [int(part.domain[0]) for part in by_domain(whole)]
        assert again == [int(part.domain[0]) for part in parts]
    assert len(orders) > 10


def test_hooks_run_once_a_step_and_the_loss_is_reported_over_inner_steps(method):
    calls = []
    method.after_step = calls.append
    many = [batch(seed) for seed in range(4)]
    found = fish(method, 0.5, batches=many[:2])
    assert calls == [0.0, 0.5]
    assert set(found[0]) == {"total", "risk"}
    assert found[0]["total"] > 0


def test_accumulated_batches_are_inner_steps_one_after_the_other(method):
    many = [batch(seed) for seed in range(2)]
    clone = clone_of(method, [part for one in many for part in by_domain(one)])
    optimiser = optimiser_for(method, TrainConfig(lr=1e-2))
    list(optimise(method, optimiser, many, total=1, accumulate=2, meta_lr=1.0))
    for inner, now in zip(clone, method.parameters(), strict=True):
        torch.testing.assert_close(now.data, inner, rtol=1e-5, atol=1e-6)


def test_what_fish_cannot_do_is_refused(method):
    check_fish(method, 0.5)
    with pytest.raises(InputError, match=r"--train\.meta-lr is 1\.5"):
        check_fish(method, 1.5)
    method.needs = replace(method.needs, domains=2)
    with pytest.raises(InputError, match="erm compares the domains of a batch"):
        check_fish(method, 0.5)
