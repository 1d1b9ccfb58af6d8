"""ArcFace as a method: the loss, the warm-up, and that it does its job."""

import pytest
import torch
import torch.nn.functional as F
from erm_twin import build

from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.nn.views import collapse
from evenfield.types import Needs


def reference(method, batch, m):
    """Cross-entropy of s cos(theta), with s cos(theta + m) at the target, item by item."""
    predictor = method.predictor
    losses = []
    for z, label in zip(predictor.features(batch.image).double(), batch.label, strict=True):
        theta = [
            (z @ w / (z.norm() * w.norm())).clamp(-1 + 1e-6, 1 - 1e-6).arccos()
            for w in predictor.head.weight.double()
        ]
        logits = torch.stack(
            [30 * (angle + m * (k == label)).cos() for k, angle in enumerate(theta)]
        )
        losses.append(F.cross_entropy(logits[None], label[None]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("progress", "m"), [(0.0, 0.0), (0.1, 0.2), (0.2, 0.4), (0.9, 0.4)])
def test_equals_the_paper_and_warms_up(backbone, progress, m):
    method, batch = build("arcface", backbone, m=0.4, margin_warmup=0.2), fake_batch(n=12)
    ours = method.losses(batch, progress=progress).total
    torch.testing.assert_close(ours.double(), reference(method, batch, m), rtol=1e-4, atol=1e-4)


def test_eval_mode_is_the_loss_of_what_is_deployed(backbone):
    method, batch = build("arcface", backbone).eval(), fake_batch()
    expected = F.cross_entropy(method.predictor(batch.image), batch.label)
    torch.testing.assert_close(method.losses(batch, progress=1.0).total, expected)


def test_unlabelled_images_are_never_read(backbone):
    method, batch = build("arcface", backbone).eval(), fake_batch(Needs(controls=True))
    known = batch.label >= 0
    torch.testing.assert_close(
        method.losses(batch, progress=1.0).total, method.losses(batch[known], progress=1.0).total
    )


def test_settings_are_checked(backbone):
    with pytest.raises(InputError, match="m is 2"):
        build("arcface", backbone, m=2.0)


def test_it_does_its_job(make_backbone, steps):
    """The margin draws images of one class together: less angle to the own class than without."""

    def angle(m):
        method = build("arcface", make_backbone(), m=m, s=8.0, margin_warmup=0.0)
        list(steps(method, [fake_batch(seed=seed) for seed in range(80)], lr=1e-2))
        batch = fake_batch(seed=1000, n=60)
        with torch.no_grad():
            cosine = method.predictor(batch.image) / 8
        assert collapse(cosine, batch.label)["effective_rank"] > 1.5
        return cosine.gather(1, batch.label[:, None]).arccos().mean().item()

    assert angle(0.5) < 0.9 * angle(0.0)
