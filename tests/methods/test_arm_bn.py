from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from evenfield.data.fake import fake_batch
from evenfield.methods.arm_bn import ARMBN
from evenfield.methods.erm import ERM
from evenfield.seeds import generator
from evenfield.types import Needs


def make(backbone, cls=ARMBN):
    torch.manual_seed(0)
    return cls(cls.Config(), backbone=backbone, d=4, k=3, c=3)


def test_one_episode_in_train_mode_is_plain_train_mode(backbone):
    method, batch = make(backbone), fake_batch(ARMBN.needs)
    expected = F.cross_entropy(method.predictor(batch.image), batch.label)
    torch.testing.assert_close(method.losses(batch, progress=0).total, expected)


def test_it_is_the_mean_over_episodes_of_any_size(backbone):
    method, batch = make(backbone), fake_batch(ARMBN.needs, n=20)
    batch.context[:] = torch.tensor([5] * 4 + [2] * 16)
    alone = [method.losses(batch[batch.context == code], progress=0).total for code in (2, 5)]
    total = method.losses(batch, progress=0).total
    torch.testing.assert_close(total, torch.stack(alone).mean())


def test_episodes_never_mix(backbone):
    method, batch = make(backbone), fake_batch(ARMBN.needs, num_contexts=2)
    image = batch.image.clone().requires_grad_()
    first = batch.context == 0
    object.__setattr__(batch, "image", image)
    batch.label[first] = -1
    method.losses(batch, progress=0).total.backward()
    assert image.grad[first].abs().max() == 0
    assert image.grad[~first].abs().max() > 0


def test_controls_take_no_part(backbone):
    method = make(backbone).eval()
    batch = fake_batch(Needs(controls=True, one_context=True))
    torch.testing.assert_close(
        method.losses(batch, progress=0).total,
        method.losses(batch[~batch.is_control], progress=0).total,
    )


def test_running_statistics_are_those_of_torch(backbone):
    method, batch = make(backbone), fake_batch(ARMBN.needs)
    before = {name: value.clone() for name, value in method.named_buffers()}
    method.losses(batch, progress=0)
    ours = {name: value.clone() for name, value in method.named_buffers()}
    method.load_state_dict(before, strict=False)
    method.predictor(batch.image)
    for name, value in method.named_buffers():
        torch.testing.assert_close(ours[name], value)


def strong(seed):
    """A fake episode whose contrast differs tenfold from plate to plate."""
    batch = fake_batch(ARMBN.needs, seed=seed)
    shift = torch.randn(2, 1, 3, 1, 1, generator=generator(seed, "strong shift"))
    return replace(batch, image=batch.image * (1.2 * shift[0]).exp() + 3 * shift[1])


def test_it_does_its_job(make_backbone, steps):
    """On contexts never seen, with their own statistics, it beats ERM with the source's."""
    right = {}
    for cls in (ERM, ARMBN):
        method = make(make_backbone(), cls)
        batches = [strong(i) for i in range(150)]
        list(steps(method, batches, lr=1e-2))
        if cls is ERM:
            method.eval()
        hits = []
        with torch.no_grad():
            for seed in range(1000, 1030):
                batch = strong(seed)
                hits.append(method.predictor(batch.image).argmax(1) == batch.label)
        right[cls] = torch.cat(hits).float().mean().item()
    assert right[ARMBN] > right[ERM] + 0.1
    assert right[ARMBN] > 0.9


def test_no_batch_norm_is_no_error():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert torch.isfinite(make(plain).losses(fake_batch(ARMBN.needs), progress=0).total)
