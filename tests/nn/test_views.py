"""Distances of two views, and the guards against collapse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.nn.distances import coral_distance, covariance, mmd_distance
from evenfield.nn.views import View, collapse, gap, jensen_shannon, kullback_leibler, turned

KINDS = ("js", "kl", "feat", "coral", "mmd", "js+coral")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def views(n=6, d=4, k=5, *, scale=3.0):
    return (
        View(drawn(n, d), scale * drawn(n, k, seed=1)),
        View(drawn(n, d, seed=2), scale * drawn(n, k, seed=3)),
    )


def everyone(n=6):
    return torch.ones(n, dtype=torch.bool)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 5), k=st.integers(2, 6), scale=st.floats(0, 40), seed=st.integers(0, 99))
def test_divergences_equal_their_sums(n, k, scale, seed):
    z, w = scale * drawn(n, k, seed=seed).double(), scale * drawn(n, k, seed=seed + 1).double()
    js, kl = jensen_shannon(z, w), kullback_leibler(z, w)
    for i in range(n):
        p, o = z[i].softmax(0).tolist(), w[i].softmax(0).tolist()
        q = [(a + b) / 2 for a, b in zip(p, o, strict=True)]
        half = [
            sum(a * math.log(a / m) for a, m in zip(side, q, strict=True) if a) for side in (p, o)
        ]
        assert js[i].item() == pytest.approx(sum(half) / 2, rel=1e-6, abs=1e-9)
        whole = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, o, strict=True) if a and b)
        assert kl[i].item() == pytest.approx(whole, rel=1e-6, abs=1e-9)


def test_jensen_shannon_is_symmetric_bounded_and_finite_for_certain_views():
    z, w = 30 * drawn(50, 8), 30 * drawn(50, 8, seed=1)
    torch.testing.assert_close(jensen_shannon(z, w), jensen_shannon(w, z))
    assert (jensen_shannon(z, w) <= math.log(2) + 1e-6).all()
    assert (jensen_shannon(z, w) >= 0).all()
    sure = torch.tensor([[1e4, 0.0, -1e4]]).requires_grad_()
    value = jensen_shannon(sure, sure.detach().flip(1))
    value.sum().backward()
    assert value.item() == pytest.approx(math.log(2))
    assert torch.isfinite(sure.grad).all()


@pytest.mark.parametrize("align", KINDS)
def test_equal_views_have_no_gap(align):
    clean, _ = views()
    torch.testing.assert_close(
        gap(align, clean, clean, everyone()), torch.zeros(()), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("align", KINDS)
def test_other_views_have_one_and_a_gradient(align):
    clean, other = views()
    other = View(*(part.requires_grad_() for part in other))
    value = gap(align, clean, other, everyone())
    value.backward()
    assert value > 0
    assert any(part.grad is not None and part.grad.abs().max() > 0 for part in other)


def test_kl_takes_the_clean_view_as_a_constant():
    z, w = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1).requires_grad_()
    kullback_leibler(z, w).sum().backward()
    assert z.grad is None
    torch.testing.assert_close(w.grad, w.detach().softmax(1) - z.detach().softmax(1))


def test_gaps_are_those_of_their_functions_and_add_up():
    clean, other = views()
    expected = {
        "js": jensen_shannon(clean.logits, other.logits).mean(),
        "kl": kullback_leibler(clean.logits, other.logits).mean(),
        "feat": 1 - torch.cosine_similarity(clean.z, other.z).mean(),
        "coral": coral_distance(clean.z, other.z),
        "mmd": mmd_distance(clean.z, other.z),
        "none": torch.zeros(()),
    }
    expected["js+coral"] = expected["js"] + expected["coral"]
    for align, value in expected.items():
        torch.testing.assert_close(gap(align, clean, other, everyone()), value)


@pytest.mark.parametrize("align", [*KINDS, "none"])
def test_only_images_to_be_kept_count(align):
    clean, other = views()
    keep = torch.tensor([True, True, True, True, False, False])
    expected = gap(align, View(*(p[:4] for p in clean)), View(*(p[:4] for p in other)), keep[:4])
    torch.testing.assert_close(gap(align, clean, other, keep), expected)
    z = other.z.clone().requires_grad_()
    nobody = gap(align, clean, View(z, other.logits + z.sum()), keep & False)
    assert nobody == 0
    if align != "none":
        nobody.backward()
        assert torch.isfinite(z.grad).all()


def test_angles_between_views():
    z = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    w = torch.tensor([[5.0, 0.0], [-2.0, -2.0], [1.0, 1.0]])
    torch.testing.assert_close(turned(z, w), torch.tensor([0.0, 2.0, 1 - 0.5**0.5]))


def test_distances_of_sets():
    x = drawn(9, 3).double()
    torch.testing.assert_close(covariance(x), torch.cov(x.T))
    gap_dd = torch.cov(x.T) - torch.cov(2 * x.T)
    torch.testing.assert_close(coral_distance(x, 2 * x), gap_dd.square().sum() / 36)
    assert coral_distance(x, x) == 0
    torch.testing.assert_close(
        mmd_distance(x, x.flip(0)), torch.zeros(()).double(), atol=1e-9, rtol=0
    )
    assert 0 < mmd_distance(x, x + 0.1) < mmd_distance(x, x + 1)


def test_guards_equal_their_definitions():
    z, label = drawn(9, 4).double(), torch.tensor([0, 0, 2, 2, 2, 5, 5, -1, -1])
    u = z / z.norm(dim=1, keepdim=True)
    found = collapse(z, label)
    values = torch.linalg.svdvals(u).square()
    torch.testing.assert_close(found["effective_rank"], values.sum() ** 2 / values.square().sum())
    cosines = [u[i] @ u[j] for i in range(9) for j in range(9) if i != j]
    torch.testing.assert_close(found["mean_cosine"], torch.stack(cosines).mean())
    centres = torch.stack([u[label == code].mean(0) for code in (0, 2, 5)])
    spread = (centres - centres.mean(0)).square().sum(1).mean().sqrt()
    torch.testing.assert_close(found["centre_spread"], spread)


def test_guards_see_a_collapse_and_survive_tiny_batches():
    alike = collapse(torch.ones(6, 3), torch.arange(6) % 3)
    assert [round(float(v), 3) for v in alike.values()] == [1.0, 1.0, 0.0]
    for n, label in ((1, [0]), (1, [-1]), (3, [-1, -1, -1])):
        found = collapse(drawn(n, 4), torch.tensor(label))
        assert all(torch.isfinite(value) for value in found.values())
    assert not collapse(drawn(4, 3).requires_grad_(), torch.arange(4))["mean_cosine"].requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        half = collapse(drawn(9, 4), torch.arange(9) % 3)
    torch.testing.assert_close(half, collapse(drawn(9, 4), torch.arange(9) % 3))
