from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from erm_twin import TWO, assert_follows_erm, build, generator
from torch import nn

from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods.dann import DANN, ramp
from evenfield.nn.gradient_reversal import reverse_gradient
from evenfield.types import Batch


def test_the_ramp_is_that_of_the_paper():
    assert ramp(0.0) == 0
    assert ramp(0.1) == pytest.approx(0.46211716)
    assert ramp(1.0) == pytest.approx(0.99990920)


def test_reversal_keeps_the_values_and_turns_the_gradient():
    x = torch.randn(4, 3, requires_grad=True)
    y = reverse_gradient(x, 0.3)
    assert torch.equal(y, x)
    upstream = torch.randn(4, 3)
    y.backward(upstream)
    torch.testing.assert_close(x.grad, -0.3 * upstream)


def test_the_discriminators_gradient_reaches_features_with_the_opposite_sign(backbone):
    method, batch = build("dann", backbone, weight=0.7, ramp=False), fake_batch(TWO)
    batch.label[:] = -1  # only the adversary is left
    method.losses(batch, progress=0.5).total.backward()
    ours = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    logits = method.discriminator(method.predictor.features(batch.image))
    F.cross_entropy(logits, batch.domain).backward()
    for name, p in method.named_parameters():
        if p.grad is not None:
            sign = 1 if name.startswith("discriminator") else -0.7
            torch.testing.assert_close(ours[name], sign * p.grad, rtol=1e-4, atol=1e-6)
    assert ours["predictor.backbone.0.weight"].any()


def test_the_ramp_scales_what_reaches_the_features(backbone):
    method, batch = build("dann", backbone, weight=2.0), fake_batch(TWO)
    batch.label[:] = -1
    grads = {}
    for progress in (0.0, 0.05, 1.0):
        method.zero_grad()
        method.losses(batch, progress=progress).total.backward()
        grads[progress] = (backbone[0].weight.grad.clone(), method.discriminator[0].weight.grad)
    assert not grads[0.0][0].any()
    assert grads[0.0][1].any()
    torch.testing.assert_close(
        grads[0.05][0] * ramp(1.0) / ramp(0.05), grads[1.0][0], rtol=1e-3, atol=1e-6
    )


def test_the_discriminator_is_that_of_wilds(backbone):
    layers = list(build("dann", backbone).discriminator)
    shapes = [(m.in_features, m.out_features) for m in layers if isinstance(m, nn.Linear)]
    assert shapes == [(4, 1024), (1024, 1024), (1024, 64)]
    assert sum(isinstance(m, nn.BatchNorm1d) for m in layers) == 2


def test_the_loss_is_classification_plus_domain_cross_entropy(backbone):
    method, batch = build("dann", backbone), fake_batch(n=27, num_contexts=3)
    z = method.predictor.features(batch.image)
    risk = F.cross_entropy(method.predictor.head(z), batch.label)
    domain = F.cross_entropy(method.discriminator(z), batch.domain)
    losses = method.losses(batch, progress=0.3)
    torch.testing.assert_close(losses.parts["domain"], domain)
    torch.testing.assert_close(losses.total, risk + domain)


def test_in_eval_mode_the_loss_is_the_risk_alone(backbone):
    method = build("dann", backbone, num_domains=2).eval()
    batch = replace(fake_batch(TWO), domain=torch.arange(24) + 100)
    losses = method.losses(batch, progress=1.0)
    assert (
        losses.total
        == losses.parts["risk"]
        == F.cross_entropy(method.predictor(batch.image), batch.label)
    )


def test_more_domains_than_outputs_are_refused(backbone):
    method = build("dann", backbone, num_domains=7)
    batch = fake_batch(TWO)
    with pytest.raises(InputError, match=r"code 7[\s\S]*--options.num-domains 8"):
        method.losses(replace(batch, domain=7 * batch.domain), progress=0.5)


def test_without_the_adversary_it_is_erm(make_backbone, steps):
    assert_follows_erm("dann", make_backbone, steps, weight=0.0, hidden=8)
    assert_follows_erm("dann", make_backbone, steps, num_domains=1, hidden=8)


def confounded(seed, n=128):
    """Class in channel 0, domain in channel 1, and three of four images have class = domain."""
    index = torch.arange(n)
    domain = index % 2
    label = torch.where(index % 8 < 6, domain, 1 - domain)
    noise = 0.5 * torch.randn(n, 2, generator=generator(seed))
    level = torch.stack([label - 0.5, domain - 0.5], 1) + noise
    return Batch(
        image=level[:, :, None, None].expand(-1, -1, 8, 8),
        label=label,
        is_control=label < 0,
        context=domain,
        domain=domain,
        row=index,
        seed=seed,
    )


def test_dann_does_its_job(steps):
    """One feature, of class and domain mixed: it moves less with the domain than ERM's does."""

    def gap(weight):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))
            config = DANN.Config(weight=weight, hidden=16)
            method = DANN(config, backbone=backbone, d=1, k=2, c=2)
        list(steps(method, [confounded(seed) for seed in range(150)], lr=1e-2))
        batch = confounded(999, n=1024)
        with torch.no_grad():
            z = method.predictor.features(batch.image)[:, 0]
        return ((z[batch.domain == 1].mean() - z[batch.domain == 0].mean()) / z.std()).abs().item()

    assert gap(1.0) < 0.75 * gap(0.0)
