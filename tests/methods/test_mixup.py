import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from erm_twin import TWO, assert_follows_erm, build, generator
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods.mixup import Mixup, draw_pairs
from evenfield.nn.mixing import blend, mixed_cross_entropy
from evenfield.seeds import numpy_generator


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 8), k=st.integers(2, 5), seed=st.integers(0, 99))
def test_the_loss_is_the_cross_entropy_against_mixed_labels(n, k, seed):
    g = generator(seed)
    logits, label = torch.randn(n, k, generator=g), torch.randint(k, (n,), generator=g)
    partner, keep = torch.randperm(n, generator=g), torch.rand(n, generator=g)
    one_hot = torch.eye(k).double()
    target = keep[:, None] * one_hot[label] + (1 - keep[:, None]) * one_hot[label[partner]]
    expected = -(target * logits.double().log_softmax(1)).sum(1).mean()
    ours = mixed_cross_entropy(logits, label, partner, keep)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_share_of_one_gives_the_first_image_and_its_label():
    batch = fake_batch(TWO)
    partner, keep = torch.arange(24).flip(0), torch.ones(24)
    logits = torch.randn(24, 3, generator=generator(0))
    assert torch.equal(blend(batch.image, partner, keep), batch.image)
    risk = mixed_cross_entropy(logits, batch.label, partner, keep)
    torch.testing.assert_close(risk, F.cross_entropy(logits, batch.label))
    assert torch.equal(blend(batch.image, partner, 0 * keep), batch.image[partner])


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_domains_stand_in_a_ring_with_one_share_each(sizes, seed):
    codes = [4, 0, 9, 2, 7][: len(sizes)]
    domain = torch.tensor(codes).repeat_interleave(torch.tensor(sizes))
    batch = replace(fake_batch(n=int(sum(sizes))), domain=domain)
    partner, keep = draw_pairs(numpy_generator(seed, "test"), batch, 0.2)
    after = {}
    for code in codes:
        mine = domain == code
        assert len(keep[mine].unique()) == 1
        (after[code],) = domain[partner[mine]].unique().tolist()
        used = partner[mine].bincount(minlength=len(domain))[domain == after[code]]
        assert used.max() - used.min() <= 1  # a smaller domain serves evenly
    visited = [codes[0]]
    for _ in codes[1:]:
        visited.append(after[visited[-1]])
    assert sorted(visited) == sorted(codes)


def test_controls_and_unlabelled_images_pass_unmixed():
    batch = fake_batch(replace(TWO, controls=True))
    batch.label[:5] = -1
    partner, keep = draw_pairs(numpy_generator(0, "test"), batch, 0.2)
    apart = (batch.label < 0) | batch.is_control
    assert torch.equal(partner[apart], torch.arange(len(batch))[apart])
    assert (keep[apart] == 1).all()
    assert not apart[partner[~apart]].any()
    assert (batch.domain[partner[~apart]] != batch.domain[~apart]).all()


def test_shares_follow_the_beta_distribution():
    batch = fake_batch(TWO)
    shares = np.array([draw_pairs(numpy_generator(s, ""), batch, 0.2)[1][0] for s in range(400)])
    assert abs(shares.mean() - 0.5) < 0.07
    assert abs(shares.var() - 0.25 / 1.4) < 0.02  # 1 / (4 (2 alpha + 1))


def test_mixup_is_the_formula_on_its_own_draw(backbone):
    method, batch = build("mixup", backbone, alpha=1.0), fake_batch(n=27, num_contexts=3, seed=5)
    batch.label[:3] = -1
    random = numpy_generator(batch.seed, "mixup")
    random.random()  # whether to blend
    partner, keep = draw_pairs(random, batch, 1.0)
    share = keep[:, None, None, None]
    logits = method.predictor(share * batch.image + (1 - share) * batch.image[partner])
    own, other = (
        F.cross_entropy(logits, y, reduction="none", ignore_index=-1)
        for y in (batch.label, batch.label[partner])
    )
    expected = (keep * own + (1 - keep) * other)[3:].mean()
    torch.testing.assert_close(method.losses(batch, progress=0).total, expected)


def test_draws_belong_to_the_batch(backbone):
    method, batch = build("mixup", backbone), fake_batch(TWO)
    one, two, other = (
        method.losses(replace(batch, seed=seed), progress=0).total for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert one != other
    method.eval()
    clean = F.cross_entropy(method.predictor(batch.image), batch.label)
    torch.testing.assert_close(method.losses(batch, progress=0).total, clean)


def test_mixup_without_partners_is_erm(make_backbone, steps):
    assert_follows_erm("mixup", make_backbone, steps, p=0.0)
    assert_follows_erm("mixup", make_backbone, steps, num_domains=1)


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"p": 1.5}])
def test_impossible_settings_of_mixup_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Mixup.Config(**wrong)


def test_mixup_does_its_job(make_backbone, steps):
    """On half-way blends of two domains the prediction is nearer to half of each label."""

    def excess(p):
        """Cross-entropy beyond the entropy of the mixed labels."""
        method = build("mixup", make_backbone(), alpha=1.0, p=p)
        list(steps(method, [fake_batch(TWO, seed=seed) for seed in range(100)], lr=1e-2))
        method.eval()
        values = []
        for seed in range(500, 515):
            batch = fake_batch(TWO, seed=seed)
            partner, _ = draw_pairs(numpy_generator(seed, "test"), batch, 1.0)
            half = torch.full((len(batch),), 0.5)
            with torch.no_grad():
                logits = method.predictor(blend(batch.image, partner, half))
            entropy = math.log(2) * (batch.label != batch.label[partner]).float().mean()
            values.append(mixed_cross_entropy(logits, batch.label, partner, half) - entropy)
        return torch.stack(values).mean().item()

    assert 0 < excess(1.0) < 0.8 * excess(0.0)
