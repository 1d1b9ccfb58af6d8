"""SWAD on hand-made loss curves; statistics of the average."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evenfield.data.fake import fake_batch
from evenfield.methods import METHODS
from evenfield.nn.norm import batch_norms
from evenfield.seeds import numpy_generator
from evenfield.train.average import Valley, measure_statistics

STEPS = 2  # optimiser steps between two validations


def walk(curve, **settings):
    """Follow a loss curve with weights that count the steps: after step t the weight is t."""
    model = nn.Linear(1, 1, bias=False)
    valley = Valley(model, **settings)
    for number, loss in enumerate(curve):
        for step in range(STEPS):
            model.weight.data.fill_(number * STEPS + step)
            valley.add()
        valley.close(loss)
        if valley.ended:
            break
    return model, valley, number


def mean_of_steps(first, last):
    """The mean weight over the steps that lead to validations first to last (from 0)."""
    return (first * STEPS + (last + 1) * STEPS - 1) / 2


def averaged(model, valley):
    valley.put()
    return model.weight.item()


def test_a_valley_by_hand():
    # The minimum over three is at validation 2; the bound is 1.3 * (1.0 + 1.1 + 1.2) / 3 = 1.43.
    # 1.5 and 2.0 lie above it but 1.4 follows; the six from 3.0 on end it.
    curve = [3.0, 2.0, 1.0, 1.1, 1.2, 1.5, 2.0, 1.4, 3.0, 1.5, 1.6, 1.7, 1.8, 1.9, 0.5]
    model, valley, number = walk(curve)
    assert valley.ended
    assert number == 13  # the lower loss after the end is never seen
    assert valley.bound == pytest.approx(1.43)
    assert valley.num == 6 * STEPS
    assert averaged(model, valley) == pytest.approx(mean_of_steps(2, 7))


def test_without_an_end_the_steps_after_the_last_validation_in_the_valley_are_left_out():
    model, valley, _ = walk([1.0, 1.1, 1.2, 1.1, 9.0, 9.0])
    assert not valley.ended
    assert averaged(model, valley) == pytest.approx(mean_of_steps(0, 3))


def test_a_loss_that_keeps_falling_has_no_valley():
    model, valley, _ = walk([10.0 - place for place in range(9)])
    assert valley.num == 0
    before = model.weight.item()
    assert averaged(model, valley) == before


def test_equal_losses_begin_at_the_first():
    model, valley, _ = walk([1.0] * 8)
    assert averaged(model, valley) == pytest.approx(mean_of_steps(0, 7))


def test_negative_losses_have_a_bound_above_them():
    _, valley, _ = walk([-1.0, -0.9, -0.8])
    assert valley.bound == pytest.approx(-0.9 + 0.3 * 0.9)


def paper(losses, n_converge, n_tolerance, ratio):
    """Algorithm 1, letter by letter, over validations; the steps that it averages."""
    start = end = bound = None
    for i in range(len(losses)):
        if bound is None:
            window = losses[i - n_converge + 1 : i + 1]
            if i >= n_converge - 1 and window[0] == min(window):
                start, bound = i - n_converge + 1, (1 + ratio) * sum(window) / n_converge
        elif i >= n_tolerance - 1 and bound < min(losses[i - n_tolerance + 1 : i + 1]):
            end = i - n_tolerance
            break
    if start is None:
        return None
    if end is None:  # our choice: up to the last validation within the bound
        end = max(place for place in range(start, len(losses)) if losses[place] <= bound)
    return start, end


@settings(deadline=None, max_examples=200)
@given(
    losses=st.lists(st.sampled_from([0.5, 0.7, 1.0, 1.2, 1.5, 2.0, 3.0]), min_size=1, max_size=25),
    n_converge=st.integers(1, 4),
    n_tolerance=st.integers(1, 6),
)
def test_random_curves_against_the_algorithm_of_the_paper(losses, n_converge, n_tolerance):
    n_tolerance = max(n_tolerance, n_converge)  # else the paper's own window reaches before s
    model, valley, _ = walk(losses, n_converge=n_converge, n_tolerance=n_tolerance)
    expected = paper(losses, n_converge, n_tolerance, 0.3)
    if expected is None:
        assert valley.num == 0
    else:
        assert averaged(model, valley) == pytest.approx(mean_of_steps(*expected), rel=1e-5)


def test_the_average_of_equal_weights_is_that_weight_bit_for_bit():
    model = nn.Linear(5, 3)
    before = copy.deepcopy(model.state_dict())
    valley = Valley(model)
    for loss in (1.0, 1.0, 1.1, 1.2, 1.0):
        for _ in range(7):
            valley.add()
        valley.close(loss)
    assert valley.num == 35
    model.weight.data.zero_()
    valley.put()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("cut", [1, 3, 5, 8, 13])
def test_a_valley_resumed_anywhere_is_the_same_bit_for_bit(cut):
    curve = [3.0, 1.0, 1.1, 1.2, 1.5, 2.0, 1.1, 9.0, 9.0]
    random = numpy_generator(0, "weights")
    steps = torch.from_numpy(random.normal(size=(len(curve) * STEPS, 4))).float()

    def follow(valley, model, first, last):
        for number in range(first, last):
            model.weight.data[0] = steps[number]
            valley.add()
            if number % STEPS == STEPS - 1:
                valley.close(curve[number // STEPS])

    whole = nn.Linear(4, 1, bias=False)
    one = Valley(whole)
    follow(one, whole, 0, len(steps))
    halves = nn.Linear(4, 1, bias=False)
    first = Valley(halves)
    follow(first, halves, 0, cut)
    state = copy.deepcopy(first.state())
    second = Valley(halves)
    second.restore(state)
    follow(second, halves, cut, len(steps))
    one.put()
    second.put()
    assert torch.equal(whole.weight, halves.weight)
    assert (one.num, one.bound, one.ended) == (second.num, second.bound, second.ended)


def test_frozen_parameters_are_not_averaged():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    valley = Valley(model, n_converge=1)
    valley.add()
    valley.close(1.0)
    model.bias.data.fill_(7.0)
    model.weight.data.fill_(7.0)
    valley.put()
    assert (model.bias == 7).all()
    assert not (model.weight == 7).any()


def test_statistics_are_the_mean_over_the_batches_whatever_they_were_before(make_backbone):
    cls = METHODS["erm"]
    method = cls(cls.Config(), backbone=make_backbone(), d=4, k=3, c=3)
    method.register_buffer("mine", torch.tensor(5.0))
    first = method.predictor.backbone[1]
    first.running_mean.fill_(1e6)
    batches = [fake_batch(method.needs, seed=seed) for seed in range(3)]
    weights = copy.deepcopy(dict(method.named_parameters()))
    measure_statistics(method, batches)
    inputs = [method.predictor.backbone[0](batch.image) for batch in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    var = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0)
    torch.testing.assert_close(first.running_mean, mean)
    torch.testing.assert_close(first.running_var, var)
    assert not method.training
    assert first.momentum == 0.1
    assert method.mine == 5
    assert all(torch.equal(weights[n], p) for n, p in method.named_parameters())


def test_statistics_of_a_method_whose_buffers_change_in_training(make_backbone):
    cls = METHODS["groupdro"]
    method = cls(cls.Config(), backbone=make_backbone(), d=4, k=3, c=3)
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    measure_statistics(method, [fake_batch(method.needs, seed=seed) for seed in range(2)])
    norms = set(batch_norms(method))
    for name, buffer in method.named_buffers():
        assert torch.equal(buffer, before[name]) == (name.rpartition(".")[0] not in norms), name
