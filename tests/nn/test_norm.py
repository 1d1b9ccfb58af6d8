"""Statistics of BatchNorm layers: moments, mixtures, rules, tracking."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evenfield.nn import norm
from evenfield.nn.estimate import fit_exact, fit_pooled, stratified_chunks
from evenfield.types import Context

SHAPES = {1: (7,), 2: (5, 6), 3: (3, 4, 5)}
LAYERS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def images(n: int, pixels: tuple[int, ...], *, offset: float = 3.0, c: int = 4) -> torch.Tensor:
    rng = torch.Generator().manual_seed(n + 10 * len(pixels))
    return torch.randn(n, c, *pixels, generator=rng) * 2 + offset


def joint(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Biased moments, letter by letter in float64."""
    rows = x.double().movedim(1, 0).flatten(1)
    mean = rows.sum(1) / rows.shape[1]
    return mean, ((rows - mean[:, None]) ** 2).sum(1) / rows.shape[1]


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_moments_are_the_biased_joint_moments(dims: int) -> None:
    x = images(9, SHAPES.get(dims, ()))
    mean, var = joint(x)
    m = norm.moments(x)
    torch.testing.assert_close(m.mean.double(), mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(m.var.double(), var, atol=1e-6, rtol=1e-6)
    per_image = x.double().flatten(2).mean(2) if dims else x.double()
    torch.testing.assert_close(m.spread.double(), per_image.var(0, correction=0))


def test_moments_survive_a_large_offset_and_half_precision() -> None:
    x = images(6, (8, 8), offset=1000.0)
    torch.testing.assert_close(norm.moments(x).var.double(), joint(x)[1], rtol=1e-4, atol=0)
    half = images(6, (8, 8)).bfloat16()
    torch.testing.assert_close(norm.moments(half).var.double(), joint(half)[1], rtol=1e-5, atol=0)


def test_moments_do_not_depend_on_memory_format_or_blocks() -> None:
    x = images(40, (64, 64), c=8)  # more than one block
    mean, var = joint(x)
    for y in (x, x.to(memory_format=torch.channels_last)):
        m = norm.moments(y)
        torch.testing.assert_close(m.mean.double(), mean, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(m.var.double(), var, atol=1e-6, rtol=2e-6)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 100))
def test_pooled_moments_are_those_of_the_concatenation(sizes: list[int], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    sets = [
        torch.randn(n, 3, 4, generator=rng, dtype=torch.float64) + i for i, n in enumerate(sizes)
    ]
    pooled, whole = norm.pool(norm.moments(s) for s in sets), norm.moments(torch.cat(sets))
    assert pooled.num_images == whole.num_images
    for name in ("mean", "var", "spread"):
        torch.testing.assert_close(getattr(pooled, name), getattr(whole, name))


def test_means_0_and_4_give_variance_4_98() -> None:
    """Two batches of 64 with means 0 and 4: averaging their variances would give 0.98."""
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(64, 1, generator=rng, dtype=torch.float64)
    base = (base - base.mean()) / base.std(correction=0) * 0.98**0.5
    pooled = norm.pool([norm.moments(base), norm.moments(base + 4)])
    assert pooled.var.item() == pytest.approx(4.98)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9))
def test_mixture_with_the_natural_share_is_the_union(n: int, m: int) -> None:
    a, b = images(n, (4,)).double(), images(m, (4,)).double() * 0.5 - 2
    mean, var = norm.mix(norm.moments(a), norm.moments(b), n / (n + m))
    whole = norm.moments(torch.cat([a, b]))
    torch.testing.assert_close(mean, whole.mean)
    torch.testing.assert_close(var, whole.var)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_union_rule_is_train_mode_bit_for_bit(dims: int, momentum: float | None) -> None:
    ours = nn.Sequential(LAYERS[dims](4, momentum=momentum))
    theirs = copy.deepcopy(ours)
    for seed in (2, 5):
        x = images(seed, SHAPES[dims])
        with norm.normalising(ours, norm.union_rule):
            y = ours(x)
        assert torch.equal(y, theirs(x))
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key


def test_union_rule_in_eval_mode_tracks_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4)).eval()
    before = copy.deepcopy(model.state_dict())
    with norm.normalising(model, norm.union_rule):
        y = model(images(6, (3, 3)))
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_subset_rule_of_everything_is_train_mode(dims: int, momentum: float | None) -> None:
    ours = nn.Sequential(LAYERS[dims](4, momentum=momentum))
    theirs = copy.deepcopy(ours)
    x, y = images(6, SHAPES[dims]).requires_grad_(), images(6, SHAPES[dims]).requires_grad_()
    weight = images(6, SHAPES[dims], offset=0)
    with norm.normalising(ours, norm.subset_rule(torch.ones(6, dtype=torch.bool))):
        mine = ours(x)
    other = theirs(y)
    (mine * weight).sum().backward()
    (other * weight).sum().backward()
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(value, ours.state_dict()[key], atol=1e-5, rtol=1e-5)


def test_subset_rule_gradient_through_the_statistics_can_be_cut() -> None:
    keep = torch.tensor([False, False, True, True, True])
    grads = {}
    for gradient in (True, False):
        model = nn.Sequential(nn.BatchNorm2d(4))
        x = images(5, (3, 3)).requires_grad_()
        with norm.normalising(model, norm.subset_rule(keep, gradient=gradient)):
            y = model(x)
        y[:2].square().sum().backward()  # a loss on rows that are not in the statistics
        assert x.grad is not None
        grads[gradient] = x.grad[keep].abs().sum().item()
    assert grads[True] > 0
    assert grads[False] == 0


def test_normalising_restores_the_layers_even_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4)).eval()
    x = images(3, (2, 2))
    before = model(x)

    def rule(name: str, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="0"), norm.normalising(model, rule):
        model(x)
    assert torch.equal(model(x), before)
    assert "forward" not in model[0].__dict__


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalise_is_the_formula(affine: bool, dtype: torch.dtype) -> None:
    layer = nn.BatchNorm2d(4, affine=affine)
    if affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    if dtype == torch.float64:
        layer.double()
    x = images(3, (4, 4)).to(dtype)
    mean, var = torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 4, 9, 16])
    expected = (x.double() - mean.double()[:, None, None]) / (
        var.double()[:, None, None] + 1e-5
    ) ** 0.5
    if affine:
        expected = (
            expected * layer.weight.double()[:, None, None] + layer.bias.double()[:, None, None]
        )
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-5
    for flow in (False, True):
        y = norm.normalise(layer, x, mean.clone().requires_grad_(flow), var)
        torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)


def test_set_statistics_leaves_plain_tensors_that_can_train() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4)).eval()
    with torch.inference_mode():
        m = norm.moments(images(4, (3, 3)))
        norm.set_statistics(model[0], m.mean, m.var)
    assert not model[0].running_mean.is_inference()
    model(images(2, (3, 3))).sum().backward()
    assert model[0].weight.grad is not None


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5)
    ).eval()


def choose(name: str, seen: object) -> tuple[torch.Tensor, torch.Tensor]:
    whole = norm.pool([m for m in (seen.perturbed, seen.controls) if m is not None])  # type: ignore[attr-defined]
    return whole.mean, whole.var


def test_chunks_keep_the_mixture_and_lose_no_image() -> None:
    flags = torch.tensor([False, True, True] * 10)
    context = Context(image=torch.arange(30.0).reshape(30, 1, 1, 1), is_control=flags)
    chunks = list(stratified_chunks(context, 12))
    assert len(chunks) == 3
    assert all(len(c.image) <= 12 for c in chunks)
    assert sorted(torch.cat([c.image for c in chunks]).flatten().tolist()) == list(range(30))
    for c in chunks:
        num_perturbed = int((~c.is_control).sum())
        assert 3 <= num_perturbed <= 4
        assert not c.is_control[:num_perturbed].any()


def test_pooled_fit_is_exact_for_the_first_layer_and_the_exact_fit_for_all() -> None:
    x = images(20, (9, 9)) + torch.linspace(0, 5, 20)[:, None, None, None]
    context = Context(image=x, is_control=torch.arange(20) % 3 == 0)
    whole, pooled, exact = net(), net(), net()
    fit_pooled(whole, stratified_chunks(context, 20), choose)
    fit_pooled(pooled, stratified_chunks(context, 6), choose)
    fit_exact(exact, stratified_chunks(context, 6), choose)
    torch.testing.assert_close(pooled[1].running_var, whole[1].running_var, atol=1e-6, rtol=1e-6)
    assert (pooled[4].running_var - whole[4].running_var).abs().max() > 1e-4
    torch.testing.assert_close(exact(x), whole(x), atol=1e-4, rtol=1e-4)
    with norm.normalising(net_ := net(), norm.union_rule):
        torch.testing.assert_close(exact(x), net_(x), atol=1e-4, rtol=1e-4)
