import copy
from dataclasses import replace

import pytest
import torch
from gradients import PROBE, STUDENT, reached

from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods import METHODS

SMALL = {"hidden": 16, "projection": 8}


def build(make_backbone, **options):
    cls = METHODS["byol"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(cls.Config(**SMALL | options), backbone=make_backbone(3), d=4, k=3, c=3)


def test_the_loss_equals_the_formula_written_out(make_backbone):
    """|q / |q| - t / |t||^2 of view 1 with the target's view 2, and the reverse, in float64."""
    method = build(make_backbone).double()
    batch = fake_batch(method.needs, n=6)
    views = batch.global_views.double()
    batch = replace(batch, image=batch.image.double(), global_views=views)
    networks = method.networks
    both = views.flatten(0, 1)
    t = networks.teacher_head(networks.teacher(both)).unflatten(0, (6, 2)).tolist()
    q = method.guess(networks.student_head(networks.student(both))).unflatten(0, (6, 2)).tolist()

    def on_sphere(x):
        length = sum(v * v for v in x) ** 0.5
        return [v / length for v in x]

    total = 0.0
    for item in range(6):
        for j, k in ((0, 1), (1, 0)):
            a, b = on_sphere(q[item][j]), on_sphere(t[item][k])
            total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 12
    found = method.losses(batch, progress=0.5).parts["byol"]
    assert found.item() == pytest.approx(total, rel=1e-9)


def test_gradients_reach_the_online_network_alone(make_backbone):
    method = build(make_backbone)
    parts = method.losses(fake_batch(method.needs), progress=0.5).parts
    got = reached(method, parts["byol"])
    assert all(name.startswith((*STUDENT, "guess.")) for name in got)
    assert {name.split(".")[0] for name in got} == {"networks", "guess"}
    assert reached(method, parts["probe"]) == PROBE


def test_the_target_follows_by_the_momentum_of_the_progress(make_backbone, steps):
    method = build(make_backbone, momentum_start=0.5, momentum_end=1.0)
    before = copy.deepcopy([*method.networks.teacher.parameters()])
    [_] = steps(method, [fake_batch(method.needs)], lr=0.1)
    after = zip(before, method.networks.student.parameters(), strict=True)
    for mean, (old, new) in zip(method.networks.teacher.parameters(), after, strict=True):
        torch.testing.assert_close(mean.data, 0.5 * old + 0.5 * new.data)
    assert method.predictor.backbone is method.networks.student


def test_it_brings_views_together_without_collapse(make_backbone, steps):
    """Its job: a view predicts the other one, and items remain apart."""
    method = build(make_backbone, momentum_start=0.9)
    batch = fake_batch(method.needs, n=24)
    history = [x.parts["byol"].item() for x in steps(method, [batch] * 60, lr=5e-3)]
    assert history[-1] < 0.5 * history[0]
    with torch.no_grad():
        z = method.predictor.features(batch.image)
    assert torch.cdist(z, z).median() > 0.1 * z.norm(dim=1).mean()


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match="momentum_end is 2"):
        METHODS["byol"].Config(momentum_end=2.0)
