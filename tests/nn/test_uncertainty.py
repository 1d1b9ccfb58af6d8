"""Spreads, directions, running estimates, intensities; the search; BatchNorm under it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evenfield.errors import EvenfieldWarning
from evenfield.nn.ascent import ascend, projected, rms, weights_held
from evenfield.nn.perturbed_norm import PerturbedNorm
from evenfield.nn.places import changing
from evenfield.nn.restyle import statistics
from evenfield.nn.uncertainty import Seen, Shifts, Uncertainties, diagonal, group_means, low_rank


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def covariance(rows):
    flat = rows.flatten(1).double()
    centred = flat - flat.mean(0)
    return centred.T @ centred / len(flat)


@settings(deadline=None, max_examples=15)
@given(m=st.integers(1, 9), c=st.integers(1, 4), rank=st.integers(1, 8), seed=st.integers(0, 99))
def test_the_low_rank_structure_keeps_the_variances(m, c, rank, seed):
    rows = drawn(m, 2, c, seed=seed).double()
    found = low_rank(rows, rank)
    basis = found.basis.flatten(1)
    diagonal_of = basis.square().sum(0) + found.rest.flatten().square()
    torch.testing.assert_close(diagonal_of, covariance(rows).diagonal(), rtol=1e-6, atol=1e-9)
    assert len(basis) == min(rank, m)
    if rank >= m - 1:  # all of the covariance is in the basis
        torch.testing.assert_close(basis.T @ basis, covariance(rows), rtol=1e-6, atol=1e-9)


def test_the_leading_directions_are_those_of_the_singular_values():
    rows = drawn(12, 2, 5).double()
    centred = (rows - rows.mean(0)).flatten(1) / 12**0.5
    _, values, right = torch.linalg.svd(centred, full_matrices=False)
    basis = low_rank(rows, 3).basis.flatten(1).flip(0)
    expected = values[:3, None] * right[:3]
    sign = (basis * expected).sum(1, keepdim=True).sign()
    torch.testing.assert_close(sign * basis, expected)


def test_channels_move_together_in_the_low_rank_structure():
    rows = torch.zeros(4, 2, 3)
    rows[:, 0] = torch.tensor([-1.0, 1.0, -1.0, 1.0])[:, None] * torch.tensor([1.0, 2.0, 0.0])
    found = low_rank(rows, 1)
    shift = found.shift(torch.ones(1, 1), torch.zeros(1, 2, 3))[0, 0]
    torch.testing.assert_close(shift.abs(), torch.tensor([1.0, 2.0, 0.0]), atol=1e-6, rtol=0)
    assert shift[0] * shift[1] > 0


def test_group_means_are_those_of_each_experiment():
    rows, group = drawn(6, 2, 3), torch.tensor([1, 0, 1, 2, 2, 2])
    expected = torch.stack([rows[group == g].mean(0) for g in range(3)])
    torch.testing.assert_close(group_means(rows, group, 3), expected)


def observe(module, x, domain, *, places=("stem",)):
    """What a pass of features x through each place makes of it."""
    seen = Seen()
    for function in module.watch(places, domain, seen).values():
        assert function(x) is x
    assert seen.first == (places[0], x)
    return seen.known


def make(reference, *, rank=None, ema=0.9, learned=False):
    return Uncertainties({"stem": 3}, reference=reference, rank=rank, ema=ema, learned=learned)


def test_the_reference_set_is_images_or_experiments():
    x, domain = drawn(6, 3, 5, 5), torch.tensor([0, 0, 4, 4, 9, 9])
    rows = torch.stack(statistics(x), 1)
    of_images = observe(make("minibatch"), x, domain)["stem"].spread
    torch.testing.assert_close(of_images, diagonal(rows).spread)
    means = torch.stack([rows[domain == code].mean(0) for code in (0, 4, 9)])
    expected = (means.var(0, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(
        observe(make("between_experiment"), x, domain)["stem"].spread, expected
    )
    found = observe(make("between_experiment", rank=2), x, domain)["stem"]
    torch.testing.assert_close(
        found.basis.square().sum(0) + found.rest.square(), means.var(0, correction=0)
    )


def test_one_experiment_falls_back_to_its_images_and_says_so():
    x, domain = drawn(6, 3, 5, 5), torch.zeros(6, dtype=torch.int64)
    with pytest.warns(EvenfieldWarning, match="one experiment"):
        found = observe(make("between_experiment"), x, domain)["stem"].spread
    torch.testing.assert_close(found, observe(make("minibatch"), x, domain)["stem"].spread)


def test_a_running_spread_starts_at_the_first_and_forgets_by_ema():
    module, domain = make("ema", ema=0.75), torch.zeros(6, dtype=torch.int64)
    passes = [drawn(6, 3, 5, 5, seed=seed) for seed in range(4)]
    now = [diagonal(torch.stack(statistics(x), 1)).spread for x in passes]
    expected = now[0]
    for x, spread in zip(passes, now, strict=True):
        expected = 0.75 * expected + 0.25 * spread
        torch.testing.assert_close(observe(module, x, domain)["stem"].spread, expected)
    twin = make("ema", ema=0.75)
    twin.load_state_dict(module.state_dict())
    again = [observe(m, passes[0], domain)["stem"].spread for m in (module, twin)]
    assert torch.equal(*again)


def test_intensities_climb_and_stay_in_range():
    module = make("minibatch", learned=True)
    offset = drawn(5, 2, 3)
    scaled = module.scaled("stem", offset, 2.0)
    assert torch.equal(scaled, offset)  # they start at 1
    scaled.square().sum().backward()
    grad = module.log_scale["stem"].grad
    torch.testing.assert_close(grad, -2.0 * 2 * offset.square().sum(0))  # reversed: descent climbs
    module.log_scale["stem"].data = torch.tensor([[-5.0, 0.5, 9.0], [0.0, 1.0, 2.0]])
    module.keep_in_range()
    assert module.log_scale["stem"].tolist() == [[-2.0, 0.5, 2.0], [0.0, 1.0, 2.0]]
    assert make("minibatch").scaled("stem", offset, 1.0) is offset


def test_shifts_are_given_to_the_images_that_share_them():
    x, group = drawn(4, 3, 5, 5), torch.tensor([1, 0, 0, 1])
    known = observe(make("minibatch"), x, group)
    shifts, offset = Shifts(known, {}, group, None), {"stem": drawn(2, 2, 3, seed=1)}
    mu, sigma = statistics(x)
    new_mu, new_sigma = statistics(shifts.changes(offset)["stem"](x))
    moved = (offset["stem"] * known["stem"].spread)[group]
    torch.testing.assert_close(new_mu, mu + moved[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new_sigma, (sigma + moved[:, 1]).abs(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(shifts.size(offset), offset["stem"].square().mean((0, 2)).sqrt())


@settings(deadline=None, max_examples=20)
@given(rho=st.sampled_from([0.0, 0.5, 1.0, 3.0]), c=st.integers(1, 6), seed=st.integers(0, 99))
def test_projections_hold_and_leave_what_is_inside(rho, c, seed):
    offset = 3 * drawn(4, 2, c, seed=seed)
    box, ball = projected(offset, rho, "box"), projected(offset, rho, "ball")
    assert (box.abs() <= rho).all()
    assert (torch.linalg.vector_norm(ball, dim=-1) <= rho * c**0.5 * (1 + 1e-6)).all()
    inside = offset.abs().amax(-1, keepdim=True) <= rho
    assert torch.equal(torch.where(inside, box, 0), torch.where(inside, offset, 0))
    torch.testing.assert_close(torch.where(inside, ball, 0), torch.where(inside, offset, 0))
    direction = (ball * offset).sum(-1) / rms(offset)[..., 0] / rms(ball)[..., 0]
    if rho:
        torch.testing.assert_close(direction, torch.full((4, 2), float(c)))


def test_a_step_is_the_normalised_gradient_projected():
    goal, start = drawn(4, 3, seed=1), {"a": 0.1 * drawn(4, 3)}
    slope = 2 * (goal - start["a"])
    limit = lambda offset: projected(offset, 0.4, "box")  # noqa: E731
    found, before = ascend(
        lambda o: -(o["a"] - goal).square().sum(), start, steps=1, eta=0.5, project=limit
    )
    torch.testing.assert_close(found["a"], limit(start["a"] + 0.5 * slope / rms(slope)))
    torch.testing.assert_close(before, -(start["a"] - goal).square().sum())
    assert not found["a"].requires_grad


def test_rows_without_a_gradient_stay():
    start = {"a": drawn(3, 4), "b": drawn(2, 4)}

    def objective(offsets):
        return offsets["a"][0].sum() + 0 * offsets["b"].sum()

    found, _ = ascend(objective, start, steps=2, eta=0.5, project=lambda o: o)
    torch.testing.assert_close(found["a"][0], start["a"][0] + 1.0)
    assert torch.equal(found["a"][1:], start["a"][1:])
    assert torch.equal(found["b"], start["b"])


def test_held_weights_get_no_gradient_and_learn_afterwards(backbone):
    backbone[0].weight.requires_grad_(False)
    offset = torch.zeros(1, requires_grad=True)
    image = drawn(2, 3, 16, 16)
    with weights_held(backbone):
        (backbone(image).sum() * offset).backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert [p.requires_grad for p in backbone.parameters()] == [False] + [True] * 5
    with pytest.raises(RuntimeError, match="on purpose"), weights_held(backbone):
        raise RuntimeError("on purpose")
    assert backbone[1].weight.requires_grad


@pytest.mark.parametrize("kind", ["frozen_buffers", "eval", "dual"])
@pytest.mark.parametrize("searching", [True, False])
def test_batch_norm_under_perturbation(backbone, kind, searching):
    module, image = PerturbedNorm(backbone, kind), drawn(6, 3, 16, 16)
    backbone(image + 1)  # running statistics that are not those of the start
    before, plain = copy.deepcopy(backbone.state_dict()), copy.deepcopy(backbone)
    second = copy.deepcopy(module.state_dict())
    with module.during(backbone, searching=searching):
        found = backbone(image)
    assert all(torch.equal(v, before[name]) for name, v in backbone.state_dict().items())
    uses_running = kind == "eval" and searching
    torch.testing.assert_close(found, plain.train(not uses_running)(image))
    tracked = [name for name, v in module.state_dict().items() if not torch.equal(v, second[name])]
    assert bool(tracked) == (kind == "dual" and not searching)
    assert all("running" in name or "num_batches" in name for name in tracked)
    backbone(image)
    assert not torch.equal(backbone.state_dict()["1.running_mean"], before["1.running_mean"])


def test_a_second_set_learns_on_its_own(backbone):
    module, image = PerturbedNorm(backbone, "dual"), drawn(6, 3, 16, 16)
    with module.during(backbone, searching=False):
        backbone(image).sum().backward()
    assert backbone[1].weight.grad is None
    assert all(p.grad is not None for p in module.parameters())
    assert backbone[0].weight.grad is not None


def test_a_layer_that_keeps_nothing_uses_the_pass():
    layer, x = nn.BatchNorm2d(3, track_running_stats=False), drawn(4, 3, 5, 5)
    with PerturbedNorm(layer, "eval").during(layer, searching=True):
        found = layer(x)
    torch.testing.assert_close(found, layer(x))


def test_watching_changes_no_feature(backbone):
    module, seen = make("minibatch"), Seen()
    image, domain = drawn(4, 3, 16, 16), torch.arange(4)
    plain = backbone(image)
    with changing(backbone, module.watch(("stem", "1"), domain, seen)):
        assert torch.equal(backbone(image), plain)
    assert [u.spread.shape for u in seen.known.values()] == [(2, 8), (2, 4)]
