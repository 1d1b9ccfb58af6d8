import copy
import math
from dataclasses import replace

import pytest
import torch
from gradients import PROBE, STUDENT, reached

from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.nn.backbones import build_backbone
from evenfield.nn.dino_head import DINOHead
from evenfield.nn.distillation import different_views
from evenfield.types import Needs

SMALL = {"num_outputs": 12, "hidden": 16, "bottleneck": 8}


def build(make_backbone, name="dino", **options):
    cls = METHODS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(cls.Config(**SMALL | options), backbone=make_backbone(3), d=4, k=3, c=3)


def views_batch(n=12, **fields):
    return fake_batch(METHODS["dino"].needs, n=n, **fields)


def doubled(batch):
    named = ("image", "global_views", "local_views")
    return replace(batch, **{name: getattr(batch, name).double() for name in named})


def test_the_loss_equals_the_formula_written_out(make_backbone):
    """Every pair, item and output by hand, in float64, in the middle of the training."""
    method, batch = build(make_backbone).double(), doubled(views_batch(n=6))
    method.centre.copy_(torch.randn(12, generator=torch.Generator().manual_seed(1)) * 0.1)
    t = method.networks.teach(batch.global_views)[1]
    s = method.networks.learn(batch.views)
    tau_t, tau_s = 0.07, 0.1
    total, pairs = 0.0, 0
    for k in range(2):
        for j in range(8):
            if j == k:
                continue
            pairs += 1
            mean = 0.0
            for item in range(6):
                u = [(t[item, k, c] - method.centre[c]).item() / tau_t for c in range(12)]
                v = [s[item, j, c].item() / tau_s for c in range(12)]
                q = [math.exp(x) / sum(map(math.exp, u)) for x in u]
                log_p = [x - math.log(sum(map(math.exp, v))) for x in v]
                mean -= sum(a * b for a, b in zip(q, log_p, strict=True)) / 6
            total += mean
    assert pairs == 14
    found = method.losses(batch, progress=0.5)
    assert found.parts["dino"].item() == pytest.approx(total / pairs, rel=1e-9)


def test_fourteen_pairs_none_of_a_view_with_itself():
    pairs = different_views(2, 8)
    assert pairs.sum() == 14
    assert not pairs[0, 0]
    assert not pairs[1, 1]
    assert different_views(2, 2).sum() == 2


def test_head_gives_cosines_of_fixed_gain():
    head = DINOHead(4, 7, hidden=16, bottleneck=8)
    z = torch.randn(5, 4)
    logits = head(z)
    assert logits.abs().max() <= 1 + 1e-6
    head.directions.data *= 3
    torch.testing.assert_close(head(z), logits)
    hidden = head.mlp(z)
    cosine = torch.cosine_similarity(hidden[:, None], head.directions[None], dim=2)
    torch.testing.assert_close(logits, cosine)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(z).dtype == torch.float32


def test_batchnorm_in_the_head_takes_out_what_all_images_share():
    z = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    for batch_norm in (False, True):
        head = DINOHead(4, 7, hidden=16, bottleneck=8, batch_norm=batch_norm)
        assert torch.allclose(head(z), head(z + 50), atol=1e-4) == batch_norm


def test_centre_after_one_step_from_zero_is_a_tenth_of_the_batch_mean(make_backbone):
    method, batch = build(make_backbone), views_batch()
    t = copy.deepcopy(method).networks.teach(batch.global_views)[1]
    method.losses(batch, progress=0)
    assert torch.equal(method.centre, torch.zeros(12))  # after the step, not before
    method.after_step(0)
    torch.testing.assert_close(method.centre, 0.1 * t.mean((0, 1)))
    before = method.centre.clone()
    method.after_step(0)  # nothing seen since
    assert torch.equal(method.centre, before)


def test_the_centre_follows_all_passes_of_a_step_and_never_in_eval_mode(make_backbone):
    method = build(make_backbone)
    parts = [views_batch(seed=seed) for seed in range(2)]
    t = [copy.deepcopy(method).networks.teach(part.global_views)[1] for part in parts]
    for part in parts:
        method.losses(part, progress=0)
    method.after_step(0)
    torch.testing.assert_close(method.centre, 0.1 * torch.cat(t).mean((0, 1)))
    before = method.centre.clone()
    method.eval()
    method.losses(parts[0], progress=0)
    method.after_step(0)
    assert torch.equal(method.centre, before)


@pytest.mark.parametrize(("momentum", "same_as"), [(1.0, "teacher"), (0.0, "student")])
def test_the_teacher_stays_or_copies(make_backbone, momentum, same_as):
    networks = build(make_backbone).networks
    with torch.no_grad():
        for p in [*networks.student.parameters(), *networks.student_head.parameters()]:
            p.add_(torch.randn_like(p))
    expected = copy.deepcopy([*getattr(networks, same_as).parameters()])
    networks.follow(momentum)
    assert all(
        torch.equal(a, b) for a, b in zip(networks.teacher.parameters(), expected, strict=True)
    )
    head = getattr(networks, f"{same_as}_head").parameters()
    assert all(
        torch.equal(a, b) for a, b in zip(networks.teacher_head.parameters(), head, strict=True)
    )


def test_the_teacher_is_the_running_mean_of_the_student(make_backbone, steps):
    """Over three steps, by the closed form: (1 - m) sum m^(n - i) w_i + m^n w_0."""
    method = build(make_backbone, momentum_start=0.8, momentum_end=0.8)
    weight = [method.networks.student_head.directions.detach().clone()]
    for _ in steps(method, [views_batch(seed=seed) for seed in range(3)], lr=0.05):
        weight.append(method.networks.student_head.directions.detach().clone())
    expected = 0.8**3 * weight[0] + sum(0.2 * 0.8 ** (3 - i) * weight[i] for i in (1, 2, 3))
    torch.testing.assert_close(method.networks.teacher_head.directions, expected)


def test_student_and_teacher_start_equal_and_the_deployed_encoder_is_the_teacher(make_backbone):
    method = build(make_backbone)
    student, teacher = (
        getattr(method.networks, name).state_dict() for name in ("student", "teacher")
    )
    assert all(torch.equal(student[key], teacher[key]) for key in student)
    assert method.predictor.backbone is method.networks.teacher


def test_gradients_reach_the_student_alone_and_the_probe_only_its_own(make_backbone):
    method, batch = build(make_backbone), views_batch()
    parts = method.losses(batch, progress=0.5).parts
    got = reached(method, parts["dino"])
    assert got
    assert all(name.startswith(STUDENT) for name in got)
    assert reached(method, parts["probe"]) == PROBE


def test_the_last_layer_is_frozen_in_the_first_share_of_the_training(make_backbone):
    method, batch = build(make_backbone, freeze_last=0.1), views_batch()
    for progress, has in ((0.05, False), (0.1, True)):
        method.zero_grad()
        method.losses(batch, progress=progress).total.backward()
        head = method.networks.student_head
        assert (head.directions.grad is not None) == has
        assert head.mlp[0].weight.grad is not None


def test_groups_hold_every_trained_parameter_once(make_backbone):
    method = build(make_backbone, weight_decay_end=0.5)
    matrices, vectors, probe = method.groups()
    assert all(p.ndim > 1 for p in matrices["params"])
    assert all(p.ndim <= 1 for p in vectors["params"])
    assert matrices["weight_decay_end"] == 0.5
    assert vectors["weight_decay"] == 0
    assert probe["clip"] is False
    listed = [id(p) for group in (matrices, vectors, probe) for p in group["params"]]
    wanted = [id(p) for p in method.parameters() if p.requires_grad]
    assert sorted(listed) == sorted(wanted)


def test_global_views_alone_are_enough_and_none_is_an_error(make_backbone):
    method = build(make_backbone)
    batch = replace(views_batch(), local_views=None)
    assert torch.isfinite(method.losses(batch, progress=0).total)
    with pytest.raises(InputError, match="holds no views"):
        method.losses(fake_batch(Needs()), progress=0)


def test_vision_transformers_of_two_crop_sizes_drop_paths_in_the_student_alone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone, d = build_backbone("vit-tiny", 3)
        method = METHODS["dino"](
            METHODS["dino"].Config(**SMALL, drop_path=0.5), backbone=backbone, d=d, k=3, c=3
        )
    batch = fake_batch(method.needs, n=4, side=32)
    t = [method.networks.teach(batch.global_views)[1] for _ in range(2)]
    assert torch.equal(*t)
    again = [method.losses(batch, progress=0.5).total for _ in range(2)]
    assert torch.equal(*again)  # the same seed drops the same paths
    other = method.losses(replace(batch, seed=1), progress=0.5).total
    assert not torch.equal(other, again[0])
    method.eval()
    judged = [method.losses(replace(batch, seed=s), progress=0.5).total for s in (0, 1)]
    assert torch.equal(*judged)


def test_settings_out_of_range_are_refused():
    for name, value in [
        ("momentum_start", 1.2),
        ("tau_student", 0.0),
        ("drop_path", 1.0),
        ("probe_lr", -1.0),
        ("num_outputs", 0),
    ]:
        with pytest.raises(InputError, match=name):
            METHODS["dino"].Config(**{name: value})


def test_pairs_take_the_domain_out_of_the_features(make_backbone, steps):
    """Its job: crops of two contexts must agree, and the context fades from the teacher's features;
    crops of one image alone need not give it up."""
    shares = {}
    for pairs in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            cls = METHODS["dino"]
            options = SMALL | {"num_outputs": 64, "momentum_start": 0.9, "momentum_end": 0.99}
            method = cls(cls.Config(**options), backbone=make_backbone(3, d=8), d=8, k=3, c=3)
        batch = fake_batch(replace(method.needs, pairs=pairs), n=36, num_contexts=3)
        before = between(method, batch, steps, [])
        shares[pairs] = between(method, batch, steps, [batch] * 120)
        assert before > 0.12
    assert shares[True] < min(0.8 * before, 0.8 * shares[False])


def between(method, batch, steps, batches):
    """Share of the variance of the deployed features that lies between domains."""
    list(steps(method, batches, lr=3e-3))
    method.eval()
    with torch.no_grad():
        z = method.predictor.features(batch.image)
    method.train()
    z = (z - z.mean(0)) / (z.std(0, correction=0) + 1e-6)
    means = torch.stack([z[batch.domain == code].mean(0) for code in batch.domain.unique()])
    return means.var(0, correction=0).mean().item()
