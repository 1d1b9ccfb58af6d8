"""DSU: the paper's formula, its limits, and that it does its job."""

from dataclasses import replace

import pytest
import torch
from erm_twin import assert_follows_erm, build, generator
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield import seeds
from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods.dsu import uncertain
from evenfield.nn.places import changing


def reference(x, noise):
    """Eqs. (1) to (6) letter by letter; nothing detached, no floor."""
    n = len(x)
    mu = x.mean((2, 3))
    sigma = (((x - mu[..., None, None]) ** 2).mean((2, 3)) + 1e-6).sqrt()
    sigma_mu = (((mu - mu.mean(0)) ** 2).sum(0) / n + 1e-6).sqrt()
    sigma_sigma = (((sigma - sigma.mean(0)) ** 2).sum(0) / n + 1e-6).sqrt()
    beta, gamma = mu + noise[0] * sigma_mu, sigma + noise[1] * sigma_sigma
    normalised = (x - mu[..., None, None]) / sigma[..., None, None]
    return gamma[..., None, None] * normalised + beta[..., None, None]


@settings(deadline=None, max_examples=15)
@given(n=st.integers(1, 5), c=st.integers(1, 4), side=st.integers(2, 5), seed=st.integers(0, 99))
def test_equals_the_paper_with_its_gradient(n, c, side, seed):
    g = generator(seed)
    x = (3 * torch.randn(n, c, side, side, generator=g) + 1).double().requires_grad_()
    noise = torch.randn(2, n, c, generator=g).double()
    upstream = torch.randn(n, c, side, side, generator=g).double()
    expected, ours = reference(x, noise), uncertain(x, noise, None)
    torch.testing.assert_close(ours, expected)
    (wanted,), (got,) = (torch.autograd.grad(y, x, upstream) for y in (expected, ours))
    torch.testing.assert_close(got, wanted)


def test_the_batch_is_changed_by_its_own_draws(backbone):
    """The whole step, rebuilt from the seed."""
    method, batch = build("dsu", backbone, p=1.0, factor=0.5, floor=None), fake_batch(seed=5)
    known = {}

    def rebuilt(x, place):
        random = seeds.numpy_generator(5, "dsu", place)
        random.random()
        noise = torch.from_numpy(random.standard_normal((2, *x.shape[:2]), dtype="float32"))
        known[place] = reference(x, 0.5 * noise)
        return known[place]

    changes = {place: lambda x, place=place: rebuilt(x, place) for place in ("stem", "1", "2")}
    with changing(backbone, changes):
        logits = method.predictor(batch.image)
    expected = torch.nn.functional.cross_entropy(logits, batch.label)
    torch.testing.assert_close(method.losses(batch, progress=0).total, expected)


def test_the_floor_stops_what_the_released_code_flips():
    x, noise = torch.randn(6, 3, 8, 8, generator=generator(0)), torch.zeros(2, 6, 3)
    x = x * torch.linspace(0.1, 3, 6)[:, None, None, None]
    noise[1] = -4
    centred = x - x.mean((2, 3), keepdim=True)
    kept, flipped = ((uncertain(x, noise, f) * centred).sum((2, 3)) for f in (0.1, None))
    assert (kept > 0).all()
    assert (flipped < 0).any()


def test_eval_mode_is_the_plain_network_bit_for_bit(backbone):
    method, batch = build("dsu", backbone, p=1.0).eval(), fake_batch()
    erm = build("erm", backbone).eval()
    assert torch.equal(method.losses(batch, progress=0).total, erm.losses(batch, progress=0).total)


def test_without_a_draw_it_is_erm(make_backbone, steps):
    assert_follows_erm("dsu", make_backbone, steps, p=0.0)
    assert_follows_erm("dsu", make_backbone, steps, stages=())


def test_seeds_decide(backbone):
    method, batch = build("dsu", backbone, p=1.0), fake_batch()
    risk = [method.losses(b, progress=0).total for b in (batch, batch, replace(batch, seed=1))]
    assert torch.equal(risk[0], risk[1])
    assert not torch.equal(risk[0], risk[2])


def test_one_image_and_one_domain_are_enough(backbone):
    method = build("dsu", backbone, p=1.0)
    for batch in (fake_batch()[:1], fake_batch(num_contexts=1)):
        losses = method.losses(batch, progress=0)
        losses.total.backward()
        assert torch.isfinite(losses.total)


def test_settings_are_checked_before_training(backbone):
    with pytest.raises(InputError, match="no place 'layer9'"):
        build("dsu", backbone, stages=("layer9",))
    with pytest.raises(InputError, match="p is"):
        build("dsu", backbone, p=1.5)


def strange(seed):
    """A fake batch whose contexts differ in gain and bias more than usual."""
    batch = fake_batch(seed=seed)
    log_gain, bias = torch.randn(2, 2, 3, 1, 1, generator=seeds.generator(seed, "strange"))
    place = batch.context
    return replace(batch, image=batch.image * (0.6 * log_gain[place]).exp() + bias[place])


def test_dsu_does_its_job(make_backbone, steps):
    """Trained on six contexts it is right more often than ERM on contexts never seen."""
    right = {}
    for name, switches in (("erm", {}), ("dsu", {"p": 1.0, "stages": ("stem",)})):
        method = build(name, make_backbone(), **switches)
        list(steps(method, [replace(strange(i % 3), seed=i) for i in range(80)], lr=1e-2))
        method.eval()
        with torch.no_grad():
            hits = [
                method.predictor(batch.image).argmax(1) == batch.label
                for batch in map(strange, range(1000, 1030))
            ]
        right[name] = torch.cat(hits).float().mean().item()
    assert right["dsu"] > right["erm"] + 0.05
