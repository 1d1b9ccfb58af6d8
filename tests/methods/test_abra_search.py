"""ABRA's inner problem: what it searches, how far, and what it leaves untouched."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from erm_twin import build

from evenfield.data.fake import fake_batch
from evenfield.methods import abra
from evenfield.nn.ascent import rms
from evenfield.nn.uncertainty import Shifts

ALWAYS = {"apply_prob": 1.0, "adv_warmup": 0.0, "margin_warmup": 0.0}


def attack(backbone, **switches):
    return build("abra", backbone, **ALWAYS | switches)


@pytest.fixture
def searches(monkeypatch):
    """The searches that take place: (objective, start, found)."""
    seen, ascend = [], abra.ascend

    def spy(objective, start, **settings):
        found, before = ascend(objective, start, **settings)
        seen.append((objective, start, found))
        return found, before

    monkeypatch.setattr(abra, "ascend", spy)
    return seen


@pytest.fixture
def offsets(monkeypatch):
    """The offsets of every perturbed pass, in order; the last is that of the outer problem."""
    seen, changes = [], Shifts.changes
    monkeypatch.setattr(
        Shifts, "changes", lambda self, o: (seen.append((self, dict(o))), changes(self, o))[1]
    )
    return seen


@pytest.mark.parametrize("head", ["arc", "ce", "arc0.2+ce0.8"])
@pytest.mark.parametrize("structure", ["diag", "lowrank"])
def test_the_gradient_is_that_of_finite_differences(
    backbone, searches, monkeypatch, head, structure
):
    monkeypatch.setattr(abra, "cross_entropy", lambda logits, label: F.cross_entropy(logits, label))
    method = attack(backbone, head=head, structure=structure, beta=0.5).double()
    batch = fake_batch(n=9)
    method.losses(replace(batch, image=batch.image.double()), progress=0.5)
    objective, start, _ = searches[0]
    leaves = {place: a.double().requires_grad_() for place, a in start.items()}
    slopes = torch.autograd.grad(objective(leaves), list(leaves.values()))
    g, step = torch.Generator().manual_seed(0), 1e-5
    for (place, leaf), slope in zip(leaves.items(), slopes, strict=True):
        way = torch.randn(leaf.shape, generator=g).double()
        up, down = (objective(leaves | {place: leaf + s * step * way}) for s in (1, -1))
        torch.testing.assert_close(
            (slope * way).sum(), (up - down) / (2 * step), rtol=1e-4, atol=1e-7
        )


def test_the_objective_is_the_formula(backbone, searches):
    """J(a, b) = L_arc(z', y) - beta D(z, z'), rebuilt with torch's own operations."""
    method, batch = attack(backbone, beta=0.7, stages=("stem",), m=0.2), fake_batch(n=9)
    image, label = batch.image, batch.label
    clean = method.predictor(image)
    features = backbone[:3](image)
    mu, sigma = features.mean((2, 3)), (features.var((2, 3), correction=0) + 1e-6).sqrt()
    spread = [(v.var(0, correction=0) + 1e-6).sqrt() for v in (mu, sigma)]
    method.losses(batch, progress=0.5)
    objective, start, _ = searches[0]
    a, b = start["stem"].unbind(1)
    new_mu = mu + a * spread[0]
    new_sigma = torch.maximum(sigma + b * spread[1], 0.1 * sigma)
    over = [v[..., None, None] for v in (mu, sigma, new_mu, new_sigma)]
    z = backbone[3:](over[3] * (features - over[0]) / over[1] + over[2])
    cosine = F.normalize(z, dim=1) @ F.normalize(method.predictor.head.weight, dim=1).T
    theta = cosine.arccos()
    target = F.one_hot(label, 3).bool()
    arc = F.cross_entropy(30 * torch.where(target, (theta + 0.2).cos(), cosine), label)
    p, q = clean.softmax(1), (30 * cosine).softmax(1)
    middle = (p + q) / 2
    js = ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)) / 2
    torch.testing.assert_close(objective(start), arc - 0.7 * js.mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adversary", ["offset", "hybrid"])
def test_three_small_steps_climb(make_backbone, adversary):
    method = attack(make_backbone(), adversary=adversary, T=3, eta=0.02)
    climbed = []
    for seed in range(40):
        parts = method.losses(fake_batch(seed=seed), progress=0.5).parts
        climbed.append(bool(parts["inner_after"] >= parts["inner_before"] - 1e-5))
    assert sum(climbed) >= 38


@pytest.mark.parametrize("inner_bn", ["frozen_buffers", "eval", "dual"])
def test_the_search_leaves_no_trace(backbone, monkeypatch, inner_bn):
    """Bit for bit: weights, gradients and buffers as they are after the clean pass alone."""
    method, batch = attack(backbone, T=3, inner_bn=inner_bn), fake_batch()
    for parameter in method.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    twin, calm = copy.deepcopy(method), build("abra", copy.deepcopy(backbone), apply_prob=0.0)
    during, ascend = [], abra.ascend

    def spy(*args, **settings):
        result = ascend(*args, **settings)
        during.append(copy.deepcopy(method.state_dict()))
        return result

    monkeypatch.setattr(abra, "ascend", spy)
    method.losses(batch, progress=0.5)
    calm.losses(batch, progress=0.5)
    expected = calm.predictor.state_dict()
    for name, value in method.predictor.state_dict().items():
        assert torch.equal(value, expected[name]), name
    second = {n: v for n, v in twin.state_dict().items() if n.startswith("norms")}
    assert all(torch.equal(during[0][name], value) for name, value in second.items())
    for parameter in method.parameters():
        assert parameter.requires_grad
        assert (parameter.grad == 0.5).all()


@pytest.mark.parametrize("stages", [("stem", "2"), ("1",)])
def test_what_lies_before_the_first_place_is_computed_once(backbone, monkeypatch, stages):
    """A perturbed pass that starts at its first place is the whole pass, with its gradients."""
    method, batch = attack(backbone, stages=stages, T=2), fake_batch()
    short = method.losses(batch, progress=0.5)
    short.total.backward()
    gradients = [p.grad.clone() for p in method.parameters()]
    monkeypatch.setattr(abra.ABRA, "_resuming", lambda *_, **__: nullcontext())
    method.zero_grad()
    whole = method.losses(batch, progress=0.5)
    whole.total.backward()
    torch.testing.assert_close(short.total, whole.total)
    torch.testing.assert_close(short.parts, whole.parts)
    for ours, theirs in zip(gradients, method.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constraint", ["box", "ball"])
@pytest.mark.parametrize("adversary", ["offset", "scale", "hybrid", "random_direction"])
def test_offsets_stay_within_the_radius(backbone, offsets, constraint, adversary):
    method = attack(backbone, adversary=adversary, constraint=constraint, rho=0.8, T=3, eta=5.0)
    for value in method.uncertainties.log_scale.values():
        value.data.fill_(1.0)
    method.losses(fake_batch(), progress=0.5)
    assert len(offsets) == (1 if adversary == "scale" else 4)
    for _, found in offsets:
        for a in found.values():
            size = a.abs().max() if constraint == "box" else rms(a).max()
            assert size <= 0.8 + 1e-6


def test_the_start_is_gaussian_and_projected(backbone, searches):
    method = attack(backbone, rho=1.0)
    for seed in range(8):
        method.losses(fake_batch(seed=seed), progress=0.5)
    start = torch.cat([s["stem"].flatten() for _, s, _ in searches])
    assert abs(start.mean()) < 0.05
    assert (start.abs() == 1).float().mean() == pytest.approx(0.317, abs=0.03)  # beyond 1 sigma


def test_no_radius_is_the_identity(backbone):
    losses = attack(backbone, rho=0.0).losses(fake_batch(), progress=0.5)
    torch.testing.assert_close(losses.parts["adversarial"], losses.parts["risk"])
    torch.testing.assert_close(losses.parts["alignment"], torch.zeros(()), atol=1e-6, rtol=0)
    assert losses.parts["a_rms"] == losses.parts["b_rms"] == 0


def test_a_random_direction_is_as_long_as_the_searched_one(make_backbone, offsets, searches):
    moves = {}
    for adversary in ("offset", "random_direction"):
        attack(make_backbone(), adversary=adversary, T=2, rho=100.0).losses(
            fake_batch(), progress=0.5
        )
        start, final = searches[-1][1], offsets[-1][1]
        moves[adversary] = {place: final[place] - start[place] for place in start}
    for place, move in moves["offset"].items():
        other = moves["random_direction"][place]
        torch.testing.assert_close(rms(other), rms(move), rtol=1e-4, atol=1e-4)
        assert torch.cosine_similarity(other.flatten(1), move.flatten(1)).abs().mean() < 0.5


@pytest.mark.parametrize(
    "shared", [{"offset_sharing": "shared_per_experiment"}, {"structure": "shared_per_experiment"}]
)
def test_experiments_share_an_offset(backbone, offsets, shared):
    batch = fake_batch(num_contexts=3)
    attack(backbone, **shared).losses(batch, progress=0.5)
    shifts, found = offsets[-1]
    assert found["stem"].shape == (3, 2, 8)
    assert torch.equal(shifts.group, batch.domain)
    attack(backbone).losses(batch, progress=0.5)
    shifts, found = offsets[-1]
    assert found["stem"].shape == (24, 2, 8)
    assert torch.equal(shifts.group, torch.arange(24))


def test_the_low_rank_latent_is_searched_and_the_rest_drawn(backbone, offsets, searches):
    method = attack(backbone, structure="lowrank", rank=3, offset_sharing="shared_per_experiment")
    method.losses(fake_batch(num_contexts=4), progress=0.5)
    shifts, found = offsets[-1]
    assert found["stem"].shape == (4, 3)
    assert shifts.noise["stem"].shape == (4, 2, 8)
    assert shifts.noise["stem"].abs().max() <= 1
    assert not torch.equal(found["stem"], searches[0][1]["stem"])


def test_intensities_learn_to_climb(backbone):
    """The gradient of log-scales is minus that of the adversarial loss, by finite differences."""
    method, batch = attack(backbone, adversary="scale", rho=100.0, lambda_d=0.0), fake_batch()
    method.losses(batch, progress=0.5).total.backward()
    log_scale = method.uncertainties.log_scale["stem"]
    way = torch.randn(log_scale.shape, generator=torch.Generator().manual_seed(0))
    values = []
    for step in (1e-2, -1e-2):
        with torch.no_grad():
            log_scale += step * way
            values.append(method.losses(batch, progress=0.5).parts["adversarial"].item())
            log_scale -= step * way
    slope = (values[0] - values[1]) / 2e-2
    assert -(log_scale.grad * way).sum().item() == pytest.approx(slope, rel=0.05, abs=1e-2)


def test_intensities_climb_in_training_and_stay_in_range(make_backbone, steps):
    method = attack(make_backbone(), adversary="scale", rho=10.0)
    list(steps(method, [fake_batch(seed=seed) for seed in range(15)], lr=0.2))
    for value in method.uncertainties.log_scale.values():
        assert value.abs().max() <= 2
        assert value.abs().max() > 0.5


def test_searching_beats_drawing(make_backbone, steps):
    """On a trained network the found shift hurts more than drawn ones of the same box."""
    method = attack(make_backbone(), T=3)
    list(steps(method, [fake_batch(seed=seed) for seed in range(20)], lr=1e-2))
    hurt = {}
    for adversary in ("offset", "random_direction"):
        method.config = replace(method.config, adversary=adversary)
        with torch.no_grad():
            parts = [
                method.losses(fake_batch(seed=seed), progress=0.5).parts for seed in range(100, 110)
            ]
        hurt[adversary] = sum(p["adversarial"].item() for p in parts)
    assert hurt["offset"] > 1.1 * hurt["random_direction"]
