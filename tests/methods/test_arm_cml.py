import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evenfield.data.fake import fake_batch
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.methods.arm_cml import ARMCML, group_mean
from evenfield.nn.norm import normalising, union_rule
from evenfield.types import Context


def make(make_backbone, **switches):
    config = ARMCML.Config(hidden=8, **switches)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = make_backbone(3 + ARMCML.extra_channels(config))
        return ARMCML(config, backbone=backbone, d=4, k=3, c=3)


def context_of(batch):
    return Context(image=batch.image, is_control=batch.is_control, name="P1")


def randomised(method):
    """Running statistics that differ from 0 and 1."""
    for seed in range(3):
        method.train().losses(fake_batch(ARMCML.needs, seed=seed), progress=0)
    return method.eval()


def test_the_networks_are_those_of_the_specification():
    method = ARMCML(
        ARMCML.Config(), backbone=nn.Sequential(nn.Conv2d(17, 4, 3), nn.Flatten()), d=4, k=8, c=5
    )
    convolutions = [m for m in method.predictor.context_net if isinstance(m, nn.Conv2d)]
    sizes = [(m.in_channels, m.out_channels, *m.kernel_size) for m in convolutions]
    assert sizes == [(5, 64, 5, 5), (64, 64, 5, 5), (64, 12, 5, 5)]
    assert method.predictor.context_net(torch.randn(2, 5, 9, 11)).shape == (2, 12, 9, 11)
    assert ARMCML.extra_channels(ARMCML.Config()) == 12


def test_equals_the_paper(make_backbone):
    method = randomised(make(make_backbone))
    batch = fake_batch(ARMCML.needs, num_contexts=2)
    net, p = method.predictor.context_net, method.predictor
    logits = torch.empty(len(batch), 3)
    for code in (0, 1):
        rows = (batch.context == code).nonzero().flatten()
        mean = sum(net(batch.image[r : r + 1]) for r in rows) / len(rows)
        for r in rows:
            logits[r] = p.head(p.backbone(torch.cat([batch.image[r : r + 1], mean], 1)))[0]
    expected = F.cross_entropy(logits, batch.label)
    torch.testing.assert_close(method.losses(batch, progress=0).total, expected)


def test_permuting_a_group_leaves_its_context(make_backbone):
    method = randomised(make(make_backbone))
    batch = fake_batch(ARMCML.needs)
    ours = method.predictor.condition(context_of(batch))
    theirs = method.predictor.condition(context_of(batch[torch.randperm(len(batch))]))
    torch.testing.assert_close(ours.context_map, theirs.context_map)
    maps = torch.randn(6, 2, 3, 3)
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    order = torch.tensor([2, 0, 1, 5, 3, 4])
    torch.testing.assert_close(group_mean(maps[order], group), group_mean(maps, group))


@pytest.mark.parametrize("adapt_bn", [False, True])
def test_conditioned_prediction_equals_the_episode(make_backbone, adapt_bn):
    method = randomised(make(make_backbone, adapt_bn=adapt_bn))
    batch = fake_batch(ARMCML.needs, seed=9)
    conditioned = method.predictor.condition(context_of(batch)).eval()
    loss = F.cross_entropy(conditioned(batch.image), batch.label)
    torch.testing.assert_close(loss, method.losses(batch, progress=0).total, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(conditioned(batch.image[:1]), conditioned(batch.image)[:1])
    assert type(conditioned) is type(method.predictor)


def test_conditioning_leaves_the_source_alone(make_backbone):
    method = randomised(make(make_backbone, adapt_bn=True))
    before = copy.deepcopy(method.state_dict())
    method.predictor.condition(context_of(fake_batch(ARMCML.needs)))
    assert before.keys() == method.state_dict().keys()
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_without_context_an_image_is_its_own(make_backbone):
    method = randomised(make(make_backbone))
    batch = fake_batch(ARMCML.needs)
    alone = torch.cat(
        [method.predictor.condition(context_of(batch[i : i + 1]))(batch.image[i : i + 1])
         for i in range(len(batch))]
    )  # fmt: skip
    torch.testing.assert_close(method.predictor(batch.image), alone, rtol=1e-4, atol=1e-5)


def test_adapted_batch_norm_takes_each_episodes_statistics(make_backbone):
    method = randomised(make(make_backbone, adapt_bn=True))
    batch = fake_batch(ARMCML.needs, num_contexts=2)
    parts = []
    for code in (0, 1):
        episode = batch[batch.context == code]
        with normalising(method.predictor, union_rule):
            logits = method.predictor.in_groups(episode.image, episode.context)
        parts.append(F.cross_entropy(logits, episode.label))
    torch.testing.assert_close(method.losses(batch, progress=0).total, sum(parts) / 2)


def test_fallbacks_and_errors_are_stated(make_backbone):
    method = randomised(make(make_backbone))
    batch = fake_batch(ARMCML.needs)
    controls = Context(image=batch.image, is_control=torch.ones(len(batch), dtype=torch.bool))
    with pytest.warns(EvenfieldWarning, match="no perturbed image"):
        method.predictor.condition(controls)
    empty = method.predictor.condition(context_of(batch[:0]))
    assert empty.context_map is None
    with pytest.raises(InputError, match="one size"):
        method.predictor.condition(context_of(batch))(batch.image[:, :, :8])


def test_it_does_its_job(make_backbone, steps):
    """The context tells plates apart where an image alone cannot: the sign of the plate's light."""

    def lit(seed):
        batch = fake_batch(ARMCML.needs, seed=seed, k=2)
        sign = 1.0 if seed % 2 else -1.0
        # half the images carry the plate's mark, all carry a class whose sign the mark decides
        marked = (torch.arange(len(batch)) // 2 % 2).bool()
        batch.image.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
        batch.image[:, 0] += sign * (2.0 * batch.label - 1)[:, None, None]
        batch.image[marked, 1] += 2 * sign
        return batch[torch.arange(len(batch))]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = make(make_backbone)
    list(steps(method, [lit(i) for i in range(100)], lr=1e-2))
    method.eval()
    right = {"alone": [], "conditioned": []}
    with torch.no_grad():
        for seed in range(1000, 1010):
            batch = lit(seed)
            unmarked = batch[batch.image[:, 1].mean((1, 2)).abs() < 1]
            conditioned = method.predictor.condition(context_of(batch)).eval()
            for name, model in (("alone", method.predictor), ("conditioned", conditioned)):
                right[name].append(model(unmarked.image).argmax(1) == unmarked.label)
    accuracy = {name: torch.cat(hits).float().mean().item() for name, hits in right.items()}
    assert accuracy["conditioned"] > 0.9
    assert accuracy["conditioned"] > accuracy["alone"] + 0.2
