from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from erm_twin import TWO, assert_follows_erm, build

from evenfield.data.fake import fake_batch
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.methods.lisa import LISA, draw_partners
from evenfield.seeds import numpy_generator
from evenfield.types import Needs


def partners(batch, seed=0):
    return torch.from_numpy(draw_partners(numpy_generator(seed, "test"), batch))


@pytest.mark.parametrize("seed", range(5))
def test_partners_share_the_label_and_not_the_domain(seed):
    batch = fake_batch(Needs(domains=3, controls=True), seed=seed, n=27)
    batch.label[:5] = -1
    batch.label[5] = 9  # alone in its class
    partner = partners(batch, seed)
    index = torch.arange(len(batch))
    apart = (batch.label < 0) | batch.is_control | (batch.label == 9)
    assert torch.equal(partner[apart], index[apart])
    assert torch.equal(batch.label[partner], batch.label)
    assert (batch.domain[partner] != batch.domain)[~apart].all()


def test_every_possible_partner_is_drawn_equally_often():
    batch = fake_batch(TWO, n=12)
    possible = (batch.label == batch.label[0]) & (batch.domain != batch.domain[0])
    drawn = torch.stack([partners(batch, seed)[0] for seed in range(300)]).bincount(minlength=12)
    assert drawn[~possible].sum() == 0
    assert (drawn[possible] > 300 / possible.sum() * 0.7).all()


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixes_hold_both_images_and_one_label(backbone, mix):
    """Images are constant: a mix of i and j takes values between, and the loss is plain CE."""
    method = build("lisa", backbone, mix=mix)
    batch = fake_batch(TWO, seed=3)
    number = torch.arange(24.0)[:, None, None, None].expand(batch.image.shape).contiguous()
    batch = replace(batch, image=number)
    seen = []
    hook = backbone.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    losses = method.losses(batch, progress=0)
    hook.remove()
    random = numpy_generator(batch.seed, "lisa")
    random.random()  # whether to mix
    partner = torch.from_numpy(draw_partners(random, batch))
    values = seen[0].flatten(1)
    if mix == "cutmix":
        own = values == torch.arange(24.0)[:, None]
        assert (own | (values == partner[:, None])).all()
        assert torch.equal(own, own[:1].expand_as(own))  # one box for all
        assert 0 < own.float().mean() < 1
    else:
        share = (values - partner[:, None]) / (torch.arange(24.0) - partner)[:, None]
        assert ((share > 0) & (share < 1)).all()
        torch.testing.assert_close(share.amax(1), share.amin(1), rtol=0, atol=1e-4)
        assert len(share[:, 0].round(decimals=4).unique()) > 12  # a share for each image
    torch.testing.assert_close(
        losses.total, F.cross_entropy(method.predictor(seen[0]), batch.label)
    )
    assert losses.parts["mixed"] == 1


def test_a_batch_without_pairs_warns_and_trains_unmixed(backbone):
    method = build("lisa", backbone)
    batch = fake_batch(TWO, n=3)
    batch = replace(batch, domain=torch.arange(3))
    with pytest.warns(EvenfieldWarning, match="share a label across domains"):
        losses = method.losses(batch, progress=0)
    torch.testing.assert_close(
        losses.total, F.cross_entropy(method.predictor(batch.image), batch.label)
    )
    assert losses.parts["mixed"] == 0


def test_lisa_draws_belong_to_the_batch_and_rest_in_eval(backbone):
    method, batch = build("lisa", backbone), fake_batch(TWO)
    one, two, other = (
        method.losses(replace(batch, seed=seed), progress=0).total for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert one != other
    losses = method.eval().losses(batch, progress=0)
    clean = F.cross_entropy(method.predictor(batch.image), batch.label)
    torch.testing.assert_close(losses.total, clean)
    assert losses.parts["mixed"] == 0


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_lisa_without_partners_is_erm(make_backbone, steps, mix):
    assert_follows_erm("lisa", make_backbone, steps, p=0.0, mix=mix)
    assert_follows_erm("lisa", make_backbone, steps, num_domains=1, mix=mix)


def test_impossible_settings_of_lisa_are_refused():
    with pytest.raises(InputError, match="alpha"):
        LISA.Config(alpha=0.0)


def confounded(seed, agree):
    """Class is a level of channel 0, domain of channel 1; `agree` of 8 images have both alike."""
    batch = fake_batch(TWO, seed=seed, n=64)
    index = torch.arange(64)
    domain = index % 2
    label = torch.where(index % 8 < agree, domain, 1 - domain)
    level = 0.5 * torch.stack([2 * label - 1, 4 * domain - 2, 0 * label], 1).float()
    noise = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    image = level[:, :, None, None] + 2 * noise
    return replace(batch, image=image, label=label, domain=domain)


def test_lisa_does_its_job(make_backbone, steps):
    """Where class and domain go together in training and against each other in test."""

    def accuracy(p):
        method = build("lisa", make_backbone(), mix="mixup", p=p)
        list(steps(method, [confounded(seed, agree=6) for seed in range(40)], lr=1e-2))
        test = confounded(999, agree=2)
        with torch.no_grad():
            guess = method.eval().predictor(test.image).argmax(1)
        return (guess == test.label).float().mean().item()

    assert accuracy(1.0) > accuracy(0.0) + 0.05
