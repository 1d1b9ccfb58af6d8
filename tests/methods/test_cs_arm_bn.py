import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evenfield.data.fake import fake_batch
from evenfield.errors import EvenfieldWarning
from evenfield.methods.arm_bn import ARMBN
from evenfield.methods.cs_arm_bn import CSARMBN, constant_rule
from evenfield.nn.norm import normalising, subset_rule, union_rule

SWITCHES = [
    (context_train, gradient)
    for context_train in ("union", "perturbed", "controls")
    for gradient in (True, False)
]


def make(backbone, **switches):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CSARMBN(CSARMBN.Config(**switches), backbone=backbone, d=4, k=3, c=3)


def loss_of(method, batch):
    return method.losses(batch, progress=0).total


def reference(method, x_p, y, x_c, context_train):
    """Section 4.1, layer by layer in float64: (x - mean) / sqrt(biased var + eps), CE on x_p."""
    predictor = copy.deepcopy(method.predictor).double()
    x = torch.cat([x_p, x_c]).double()
    n_p = len(x_p)
    use = {"union": slice(None), "perturbed": slice(0, n_p), "controls": slice(n_p, None)}
    for layer in predictor.backbone:
        if isinstance(layer, nn.BatchNorm2d):
            part = x[use[context_train]]
            mean = part.mean((0, 2, 3), keepdim=True)
            var = ((part - mean) ** 2).mean((0, 2, 3), keepdim=True)
            gamma, beta = (p[None, :, None, None] for p in (layer.weight, layer.bias))
            x = gamma * (x - mean) / torch.sqrt(var + 1e-5) + beta
        else:
            x = layer(x)
    return F.cross_entropy(predictor.head(x[:n_p]), y)


@pytest.mark.parametrize(("context_train", "gradient"), SWITCHES)
def test_equals_the_paper(backbone, context_train, gradient):
    batch = fake_batch(CSARMBN.needs)
    method = make(backbone, context_train=context_train, control_gradient=gradient)
    c = batch.is_control
    expected = reference(method, batch.image[~c], batch.label[~c], batch.image[c], context_train)
    torch.testing.assert_close(loss_of(method, batch).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context_train", ["union", "perturbed", "controls"])
def test_gradient_equals_the_paper(backbone, context_train):
    batch = fake_batch(CSARMBN.needs)
    method = make(backbone, context_train=context_train)
    c = batch.is_control
    x_p, x_c = (batch.image[m].clone().requires_grad_() for m in (~c, c))
    reference(method, x_p, batch.label[~c], x_c, context_train).backward()
    image = batch.image.clone().requires_grad_()
    loss_of(method, replace(batch, image=image)).backward()
    torch.testing.assert_close(image.grad[~c], x_p.grad, rtol=1e-3, atol=1e-6)
    expected = torch.zeros_like(x_c) if context_train == "perturbed" else x_c.grad
    torch.testing.assert_close(image.grad[c], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("context_train", "gradient"), SWITCHES)
def test_labels_of_controls_are_never_read(backbone, context_train, gradient):
    method = make(backbone, context_train=context_train, control_gradient=gradient).eval()
    batch = fake_batch(CSARMBN.needs)
    told = replace(batch, label=torch.where(batch.is_control, 2, batch.label))
    assert torch.equal(loss_of(method, batch), loss_of(method, told))


@pytest.mark.parametrize(("context_train", "gradient"), SWITCHES)
def test_images_of_controls_matter_as_switched(backbone, context_train, gradient):
    method = make(backbone, context_train=context_train, control_gradient=gradient).eval()
    batch = fake_batch(CSARMBN.needs)
    bright = torch.where(batch.is_control[:, None, None, None], batch.image + 1, batch.image)
    same = torch.equal(loss_of(method, batch), loss_of(method, replace(batch, image=bright)))
    assert same == (context_train == "perturbed")


@pytest.mark.parametrize(("context_train", "gradient"), SWITCHES)
def test_gradient_flows_through_controls_as_switched(backbone, context_train, gradient):
    method = make(backbone, context_train=context_train, control_gradient=gradient)
    batch = fake_batch(CSARMBN.needs)
    image = batch.image.clone().requires_grad_()
    loss_of(method, replace(batch, image=image)).backward()
    reached = bool(image.grad[batch.is_control].abs().max() > 0)
    assert reached == (gradient and context_train != "perturbed")
    assert image.grad[~batch.is_control].abs().max() > 0


@settings(deadline=None, max_examples=20)
@given(
    pixels=st.sampled_from([(), (7,), (5, 4), (3, 2, 4)]),
    n_p=st.integers(1, 9),
    n_c=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_statistics_are_the_biased_moments_of_the_union(pixels, n_p, n_c, seed):
    g = torch.Generator().manual_seed(seed)
    x = 2 + 3 * torch.randn(n_p + n_c, 3, *pixels, generator=g)
    layer = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[
        len(pixels)
    ](3)
    is_control = torch.arange(len(x)) >= n_p
    axes = [0, *range(2, x.ndim)]
    shape = (1, 3, *([1] * len(pixels)))
    for rule, part in (
        (union_rule, x),
        (constant_rule(is_control), x),
        (subset_rule(is_control), x[is_control]),
    ):
        var, mean = torch.var_mean(part.double(), axes, correction=0)
        expected = (x.double() - mean.view(shape)) / torch.sqrt(var.view(shape) + layer.eps)
        if part.numel() == 3:
            continue  # one value a channel has no variance; torch refuses it
        with normalising(layer, rule):
            torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_hook_sees_the_union_to_six_digits(backbone):
    method, batch = make(backbone), fake_batch(CSARMBN.needs, n=64)
    batch = batch[torch.cat([torch.arange(64), 64 + torch.arange(32).repeat(4)])]
    assert len(batch) == 64 + 128
    seen = {}

    def watch(layer, x):
        """From output = (x - mean) / sqrt(var + eps), which has weight 1 and bias 0 at first."""
        y = union_rule("", layer, x)
        scale = x.double().std((0, 2, 3), correction=0) / y.double().std((0, 2, 3), correction=0)
        mean = x.double().mean((0, 2, 3)) - scale * y.double().mean((0, 2, 3))
        seen[layer] = (mean, scale.square() - layer.eps, x.double())
        return y

    with normalising(method.predictor, lambda _, layer, x: watch(layer, x)):
        method.predictor(batch.image)
    assert len(seen) == 2
    for mean, var, x in seen.values():
        exact = x.mean((0, 2, 3))
        torch.testing.assert_close(mean, exact, rtol=1e-6, atol=1e-6)
        biased = (x - exact[:, None, None]).square().mean((0, 2, 3))
        torch.testing.assert_close(var, biased, rtol=1e-5, atol=1e-6)


def test_accumulating_eight_episodes_is_the_gradient_of_their_mean(make_backbone):
    method = make(make_backbone())
    batches = [fake_batch(CSARMBN.needs, seed=i) for i in range(8)]
    for batch in batches:
        (loss_of(method, batch) / 8).backward()
    accumulated = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    together = replace(
        batches[0],
        **{
            name: torch.cat([getattr(b, name) for b in batches])
            for name in ("image", "label", "is_control", "domain", "row")
        },
        context=torch.arange(8).repeat_interleave(len(batches[0])),
    )
    loss_of(method, together).backward()
    for ours, theirs in zip(accumulated, method.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gradient", [True, False])
def test_without_controls_it_is_arm_bn(backbone, gradient):
    batch = fake_batch(ARMBN.needs)
    method = make(backbone, control_gradient=gradient)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        arm = ARMBN(ARMBN.Config(), backbone=backbone, d=4, k=3, c=3)
    assert torch.equal(loss_of(method, batch), loss_of(arm, batch))


def test_controls_only_without_controls_falls_back_with_a_warning(backbone):
    method, batch = make(backbone, context_train="controls"), fake_batch(ARMBN.needs)
    with pytest.warns(EvenfieldWarning, match="without controls"):
        loss = loss_of(method, batch)
    assert torch.equal(loss, loss_of(make(backbone), batch))


@pytest.mark.parametrize(("context_train", "gradient"), SWITCHES)
def test_eval_mode_computes_the_same_and_writes_nothing(backbone, context_train, gradient):
    batch = fake_batch(CSARMBN.needs)
    method = make(backbone, context_train=context_train, control_gradient=gradient)
    in_train = loss_of(method, batch)
    method.eval()
    before = copy.deepcopy(method.state_dict())
    torch.testing.assert_close(loss_of(method, batch), in_train)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_native_adapter_follows_the_switch(backbone):
    natives = [make(backbone, context_train=c).native for c in ("union", "perturbed", "controls")]
    assert natives == ["union", "batch", "controls"]


def test_it_does_its_job(make_backbone, steps):
    """One class at a time on plates never seen: controls keep the statistics where they belong."""
    right = {}
    for name, method in {
        "union": make(make_backbone()),
        "controls": make(make_backbone(), context_train="controls"),
        "perturbed": make(make_backbone(), context_train="perturbed"),
    }.items():
        batches = [fake_batch(CSARMBN.needs, seed=i) for i in range(150)]
        list(steps(method, batches, lr=1e-2))
        hits = []
        with torch.no_grad():
            for seed in range(1000, 1030):
                batch = fake_batch(CSARMBN.needs, seed=seed, n=48)
                one_class = batch[(batch.label == seed % 3) | batch.is_control]
                if name == "perturbed":
                    one_class = one_class[~one_class.is_control]
                rule = subset_rule(one_class.is_control) if name == "controls" else union_rule
                with normalising(method.predictor, rule):
                    guess = method.predictor(one_class.image).argmax(1)
                hits.append((guess == one_class.label)[~one_class.is_control])
        right[name] = torch.cat(hits).float().mean().item()
    assert right["union"] > right["perturbed"] + 0.1
    assert right["controls"] > right["perturbed"] + 0.1
