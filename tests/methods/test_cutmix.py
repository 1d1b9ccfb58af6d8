import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from erm_twin import TWO, assert_follows_erm, build

from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods.cutmix import CutMix, draw_partners
from evenfield.seeds import numpy_generator
from evenfield.types import Needs


def seen_by(method, batch):
    """The images that reach the backbone, and the loss."""
    seen = []
    hook = method.predictor.backbone.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    total = method.losses(batch, progress=0).total
    hook.remove()
    (image,) = seen
    return image, total


def numbered(batch):
    """Every pixel of an image holds the image's number."""
    number = torch.arange(len(batch), dtype=torch.float32)[:, None, None, None]
    return replace(batch, image=number.expand(batch.image.shape).contiguous())


@pytest.mark.parametrize("seed", range(6))
def test_every_image_has_the_same_box_of_one_other_image(backbone, seed):
    batch = numbered(fake_batch(Needs(domains=2, controls=True), seed=seed))
    batch.label[:4] = -1
    image, _ = seen_by(build("cutmix", backbone), batch)
    index = torch.arange(len(batch))[:, None, None, None]
    pasted = image != index
    apart = (batch.label < 0) | batch.is_control
    assert not pasted[apart].any()
    boxes = pasted.any(1).any(0)  # pixels that are pasted in any image
    rows, columns = boxes.any(1).nonzero(), boxes.any(0).nonzero()
    if boxes.any():
        box = boxes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
    for i in (~apart).nonzero()[:, 0].tolist():
        foreign = image[i][pasted[i]].unique()
        assert len(foreign) <= 1
        if len(foreign):
            assert torch.equal(pasted[i], boxes.expand_as(pasted[i]))
            assert not apart[int(foreign)]


@pytest.mark.parametrize("seed", range(6))
def test_labels_follow_the_pixels(backbone, seed):
    method = build("cutmix", backbone)
    batch = numbered(fake_batch(TWO, seed=seed))
    image, total = seen_by(method, batch)
    index = torch.arange(len(batch))
    share = (image != index[:, None, None, None]).float().mean((1, 2, 3)).max()
    random = numpy_generator(batch.seed, "cutmix")
    random.random()  # whether to mix
    partner = draw_partners(random, batch)
    logits = method.predictor(image)
    own, other = (F.cross_entropy(logits, y) for y in (batch.label, batch.label[partner]))
    torch.testing.assert_close(total, (1 - share) * own + share * other)


def test_boxes_have_all_sizes(backbone):
    """The pasted share is uniform, but for boxes cut by the edge."""
    method, batch = build("cutmix", backbone), numbered(fake_batch(TWO, n=4))
    shares = []
    with torch.no_grad():
        for seed in range(200):
            image, _ = seen_by(method, replace(batch, seed=seed))
            shares.append((image[0] != 0).float().mean().item())
    assert 0.15 < sum(shares) / 200 < 0.5
    assert max(shares) > 0.6


def test_partners_are_a_permutation(backbone):
    batch = fake_batch(Needs(controls=True))
    partner = draw_partners(numpy_generator(0, "test"), batch)
    assert torch.equal(partner.sort().values, torch.arange(len(batch)))
    assert torch.equal(partner[batch.is_control], torch.arange(24, 36))


def test_cutmix_draws_belong_to_the_batch_and_rest_in_eval(backbone):
    method, batch = build("cutmix", backbone), fake_batch(TWO)
    one, two, other = (
        method.losses(replace(batch, seed=seed), progress=0).total for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert one != other
    image, total = seen_by(method.eval(), batch)
    assert torch.equal(image, batch.image)
    torch.testing.assert_close(total, F.cross_entropy(method.predictor(batch.image), batch.label))


def test_cutmix_without_boxes_is_erm(make_backbone, steps):
    assert_follows_erm("cutmix", make_backbone, steps, p=0.0)


@pytest.mark.parametrize("wrong", [{"alpha": -1.0}, {"p": -0.1}])
def test_impossible_settings_of_cutmix_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        CutMix.Config(**wrong)


def test_cutmix_does_its_job(make_backbone, steps):
    """Of an image half of one class, half of another, both are seen."""

    def excess(p):
        """Cross-entropy beyond the entropy of the two labels."""
        method = build("cutmix", make_backbone(), p=p)
        list(steps(method, [fake_batch(TWO, seed=seed) for seed in range(80)], lr=1e-2))
        method.eval()
        values = []
        for seed in range(500, 515):
            batch = fake_batch(TWO, seed=seed)
            partner = torch.arange(24).roll(1)  # always of another class
            image = torch.cat([batch.image[..., :8], batch.image[partner][..., 8:]], -1)
            with torch.no_grad():
                logits = method.predictor(image)
            both = [F.cross_entropy(logits, y) for y in (batch.label, batch.label[partner])]
            values.append(sum(both) / 2 - math.log(2))
        return torch.stack(values).mean().item()

    assert 0 < excess(1.0) < 0.7 * excess(0.0)
