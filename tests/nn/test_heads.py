"""Cosine heads and the margin: the published formula, its limits, half precision."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evenfield.adapt import ADAPTERS
from evenfield.nn.heads import CosineHead, NeckPredictor, arc, neck, warmed_up, with_margin
from evenfield.types import Context

MARGINS = (0.0, 0.1, 0.3, 0.5, 1.0, math.pi / 2)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head_of(d=6, k=5, s=30.0):
    head = CosineHead(d, k, s=s)
    head.weight.data = drawn(k, d, seed=9)
    return head


@pytest.mark.parametrize("m", MARGINS)
def test_arc_is_the_cosine_of_the_larger_angle_or_the_fallback(m):
    theta = torch.linspace(0.01, math.pi - 0.01, 400, dtype=torch.float64)
    expected = [
        math.cos(t + m) if t + m < math.pi else math.cos(t) - m * math.sin(math.pi - m)
        for t in theta.tolist()
    ]
    torch.testing.assert_close(arc(theta.cos(), m), torch.tensor(expected).double())


@pytest.mark.parametrize("m", MARGINS)
def test_the_target_logit_falls_with_the_angle(m):
    theta = torch.linspace(0.01, math.pi - 0.01, 2000, dtype=torch.float64)
    assert (arc(theta.cos(), m).diff() < 0).all()


def test_the_two_branches_do_not_meet_and_stay_as_published():
    edge = torch.tensor([math.pi - 0.5 - 1e-6, math.pi - 0.5 + 1e-6], dtype=torch.float64)
    before, after = arc(edge.cos(), 0.5).tolist()
    assert before == pytest.approx(-1, abs=1e-4)
    assert after == pytest.approx(-1.117, abs=1e-3)


def test_without_margin_it_is_cross_entropy_of_scaled_cosines():
    head, z, label = head_of(), drawn(8, 6), torch.arange(8) % 5
    rows = [F.cosine_similarity(z, w[None], dim=1) for w in head.weight]
    expected = F.cross_entropy(30 * torch.stack(rows, 1), label)
    ours = F.cross_entropy(30 * with_margin(head.cosine(z), label, 0.0), label)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_lengths_of_features_and_classes_play_no_part():
    head, z = head_of(), drawn(8, 6)
    before = head(z)
    torch.testing.assert_close(head(100 * z), before)
    head.weight.data *= torch.rand(5, 1) + 0.1
    torch.testing.assert_close(head(z), before)


@settings(deadline=None, max_examples=20)
@given(
    n=st.integers(1, 7), k=st.integers(2, 6), m=st.sampled_from(MARGINS), seed=st.integers(0, 99)
)
def test_only_the_target_is_moved(n, k, m, seed):
    g = torch.Generator().manual_seed(seed)
    cosine = 2 * torch.rand(n, k, generator=g) - 1
    label = torch.randint(-1, k, (n,), generator=g)
    moved = with_margin(cosine, label, m)
    for i in range(n):
        for j in range(k):
            expected = arc(cosine[i, j], m) if label[i] == j else cosine[i, j]
            torch.testing.assert_close(moved[i, j], expected)


def test_soft_labels_share_the_margin():
    cosine, label = drawn(6, 4).tanh(), torch.tensor([0, 1, 2, 3, 0, 1])
    share = F.one_hot(label, 4).float()
    torch.testing.assert_close(with_margin(cosine, share, 0.4), with_margin(cosine, label, 0.4))
    half = with_margin(cosine, (share + share.roll(1, 1)) / 2, 0.4)
    both = (with_margin(cosine, label, 0.4) + with_margin(cosine, (label + 1) % 4, 0.4)) / 2
    torch.testing.assert_close(half, both)


def test_gradients_are_finite_where_angles_have_none():
    head = head_of(3, 2)
    z = torch.stack([head.weight[0], -head.weight[0], torch.zeros(3)]).detach().requires_grad_()
    label = torch.tensor([0, 0, 1])
    F.cross_entropy(30 * with_margin(head.cosine(z), label, 0.5), label).backward()
    assert torch.isfinite(z.grad[:2]).all()
    assert torch.isfinite(head.weight.grad).all()


def test_angles_are_not_computed_in_half_precision():
    head, z = head_of(64, 5), drawn(8, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        cosine = head.cosine(z)
    assert cosine.dtype == torch.float32
    exact = F.normalize(z.double(), dim=1) @ F.normalize(head.weight.double(), dim=1).T
    torch.testing.assert_close(cosine.double(), exact, rtol=1e-5, atol=1e-6)


def test_the_margin_warms_up_in_a_straight_line():
    rising = [warmed_up(0.3, p / 10, 0.5) for p in range(11)]
    assert rising[:6] == pytest.approx([0, 0.06, 0.12, 0.18, 0.24, 0.3])
    assert rising[5:] == [0.3] * 6
    assert warmed_up(0.3, 0.0, 0.0) == 0.3


def test_a_neck_stands_between_pooled_features_and_head(backbone):
    predictor = NeckPredictor(backbone, neck(4, 7), nn.Linear(7, 3)).eval()
    image = drawn(5, 3, 16, 16)
    z = predictor.features(image)
    assert z.shape == (5, 7)
    torch.testing.assert_close(predictor(image), predictor.head(predictor.neck(backbone(image))))
    context = Context(image=3 * image + 1, is_control=torch.zeros(5, dtype=torch.bool))
    before = copy.deepcopy(predictor.state_dict())
    adapted = ADAPTERS["batch"]().fit(predictor, context)
    assert any("neck" in name for name in adapted.state())  # its statistics adapt like all others
    assert all(torch.equal(v, before[name]) for name, v in predictor.state_dict().items())
