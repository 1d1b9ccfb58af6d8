import math
from dataclasses import replace

import pytest
import torch
from gradients import PROBE, reached

from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.methods.simclr import nt_xent

SMALL = {"hidden": 16, "projection": 8}


def build(make_backbone, d=4, **options):
    cls = METHODS["simclr"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(cls.Config(**SMALL | options), backbone=make_backbone(3, d=d), d=d, k=3, c=3)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_loss_equals_equation_1_written_out(n):
    p = torch.randn(n, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    z = [*p[:, 0].tolist(), *p[:, 1].tolist()]

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    total = 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = sum(math.exp(cosine(z[i], z[j]) / 0.2) for j in range(2 * n) if j != i)
        total -= math.log(math.exp(cosine(z[i], z[partner]) / 0.2) / others) / (2 * n)
    assert nt_xent(p, 0.2).item() == pytest.approx(total, abs=1e-9)


def test_the_probe_never_reaches_the_encoder(make_backbone):
    method = build(make_backbone)
    parts = method.losses(fake_batch(method.needs), progress=0.5).parts
    assert reached(method, parts["probe"]) == PROBE
    method.zero_grad()
    parts["simclr"].backward()
    assert method.predictor.head.weight.grad is None
    assert all(p.grad is not None for p in method.predictor.backbone.parameters())


def test_pairs_take_the_domain_out_of_the_features(make_backbone, steps):
    """Its job, with pairs: views of two contexts attract each other, and the context fades."""
    shares = {}
    for pairs in (False, True):
        method = build(make_backbone, d=8)
        batch = fake_batch(replace(method.needs, pairs=pairs), n=36, num_contexts=3)
        list(steps(method, [batch] * 60, lr=3e-3))
        method.eval()
        with torch.no_grad():
            z = method.predictor.features(batch.image)
        z = (z - z.mean(0)) / (z.std(0, correction=0) + 1e-6)
        means = torch.stack([z[batch.domain == code].mean(0) for code in range(3)])
        shares[pairs] = means.var(0, correction=0).mean().item()
    assert shares[True] < 0.4 * shares[False]


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match="tau is 0"):
        METHODS["simclr"].Config(tau=0.0)
