import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from evenfield.adapt import ADAPTERS
from evenfield.config import RunConfig, SplitConfig, TrainConfig
from evenfield.data.fake import fake_batch
from evenfield.methods import METHODS
from evenfield.train.loop import selecting
from evenfield.train.setup import prepare_run
from evenfield.train.validate import (
    Fixed,
    logits,
    validate,
    validation_rows,
    voted_right,
)
from evenfield.types import UNKNOWN, Context


def build(name, make_backbone):
    cls = METHODS[name]
    config = cls.Config(**cls.tested_with)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = make_backbone(3 + cls.extra_channels(config))
        return cls(config, backbone=backbone, d=4, k=3, c=3).eval()


def test_erm_by_hand(make_backbone):
    method = build("erm", make_backbone)
    fixed = [fake_batch(seed=seed, n=num, num_contexts=3) for seed, num in ((0, 12), (1, 18))]
    fixed[0].label[:4] = UNKNOWN
    found = validate(method, fixed, "accuracy")
    label, domain = (torch.cat([getattr(b, n) for b in fixed]) for n in ("label", "domain"))
    with torch.no_grad():
        z = torch.cat([method.predictor(batch.image) for batch in fixed]).double()
    known = label >= 0
    each = -z.log_softmax(1)[known, label[known]]
    assert found["loss"] == pytest.approx(float(each.mean()), rel=1e-5)
    assert found["risk"] == pytest.approx(found["loss"])
    hit = (z.argmax(1) == label)[known].float()
    assert found["accuracy"] == pytest.approx(float(hit.mean()))
    worst = min(float(hit[domain[known] == code].mean()) for code in domain.unique())
    assert found["worst-domain"] == pytest.approx(worst)
    assert set(validate(method, fixed)) == {"loss", "risk"}


def test_the_vote_of_neighbours_by_hand():
    random = torch.Generator().manual_seed(0)
    bank, z = (torch.randn(num, 5, generator=random, dtype=torch.float64) for num in (90, 20))
    owner, label = (torch.randint(0, 4, (num,), generator=random) for num in (90, 20))
    expected = []
    for query, true in zip(z, label, strict=True):
        cosine = (bank @ query) / (bank.norm(dim=1) * query.norm())
        votes = [0.0] * 4
        for near in cosine.argsort(descending=True)[:50].tolist():
            votes[int(owner[near])] += np.exp(float(cosine[near]) / 0.1)
        expected.append(int(np.argmax(votes)) == int(true))
    assert 0 < sum(expected) < 20
    assert voted_right(bank, owner, z, label).tolist() == expected


def test_neighbours_select(make_backbone):
    """Controls and unknown labels neither vote nor are judged; the bank is no part of the loss."""
    method = build("erm", make_backbone)
    bank, judged = (fake_batch(seed=seed, n=24, num_contexts=3) for seed in (0, 1))
    bank.label[:4] = UNKNOWN
    judged.is_control[:5] = True
    found = validate(method, [judged], "knn", [bank])
    with torch.no_grad():
        right = voted_right(
            method.predictor.features(bank.image)[4:], bank.label[4:],
            method.predictor.features(judged.image)[5:], judged.label[5:],
        )  # fmt: skip
    assert found["knn"] == pytest.approx(float(right.float().mean()))
    assert found["loss"] == validate(method, [judged])["loss"]


def test_what_selection_keeps_lowest():
    found = {"loss": 3.0, "accuracy": 0.9, "worst-domain": 0.25, "knn": 0.75}
    assert selecting(found, "knn") == 0.25
    assert selecting(found, "loss") == 3.0
    assert selecting(found, "worst-domain") == 0.75


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_can_be_judged_as_it_is_deployed(name, make_backbone):
    """No mode, no buffer and no gradient is left behind."""
    method = build(name, make_backbone)
    needs = method.needs
    batch = fake_batch(replace(needs, one_context=method.native != "source" or needs.one_context))
    before = copy.deepcopy(method.state_dict())
    found = validate(method, [batch], "worst-domain")
    assert all(np.isfinite(value) for value in found.values())
    supervised = "probe" if needs.views else "risk"
    assert {"loss", supervised, "accuracy", "worst-domain"} <= set(found)
    assert not method.training
    after = method.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(weight.grad is None for weight in method.parameters())


def test_accuracy_is_that_of_the_native_adapter(make_backbone):
    method = build("cs-arm-bn", make_backbone)
    batch = fake_batch(method.needs, seed=3)
    rule = ADAPTERS["union"]
    adapted = rule(rule.Config()).fit(
        method.predictor, Context(image=batch.image, is_control=batch.is_control)
    )
    torch.testing.assert_close(logits(method, batch), adapted.predict(batch.image))
    scored = ~batch.is_control
    right = logits(method, batch).argmax(1)[scored] == batch.label[scored]
    assert validate(method, [batch], "accuracy")["accuracy"] == pytest.approx(
        float(right.float().mean())
    )


@pytest.mark.parametrize("method", ["erm", "cs-arm-bn"])
def test_rows_cover_the_validation_in_the_mode_of_the_method(tiny, method):
    config = RunConfig(
        method=method,
        split=SplitConfig(test=("b04",), validation=("b03",)),
        train=TrainConfig(num_perturbed=8, num_controls=4, sampler="auto"),
    )
    setup = prepare_run(tiny, config, tiny.roles)
    parts = validation_rows(setup, config)
    together = np.concatenate(parts)
    scored = together[~setup.coded.is_control[together]]
    assert len(set(scored)) == len(scored)
    assert set(scored) <= set(setup.split.validation)
    if method == "erm":
        assert set(together) == set(setup.split.validation)
    else:
        for part in parts:
            assert len(set(setup.coded.context[part])) == 1
            assert setup.coded.is_control[part].sum() == 4


def test_large_validation_sets_are_read_again_not_kept(tiny):
    config = RunConfig(split=SplitConfig(test=("b04",)))
    setup = prepare_run(tiny, config, tiny.roles)
    rows = validation_rows(setup, config)
    kept, read = (Fixed(setup.reader, rows, most=most) for most in (2**30, 0))
    for _ in range(2):
        for one, two in zip(kept, read, strict=True):
            assert torch.equal(one.image, two.image)
            assert torch.equal(one.row, two.row)
    assert next(iter(kept)) is next(iter(kept))
    assert next(iter(read)) is not next(iter(read))
