import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evenfield.adapt import ADAPTERS
from evenfield.bench.presets.contrimix import RECIPES, recipe
from evenfield.config import from_dict
from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.methods.contrimix import ContriMix, aggregated, weights_at
from evenfield.methods.erm import ERM
from evenfield.nn.absorbance import to_absorbance, to_transmittance
from evenfield.nn.predictor import Predictor
from evenfield.nn.reconstruction import Reconstructing
from evenfield.nn.unmixing import chunk_donors
from evenfield.seeds import derive, generator
from evenfield.types import Context, Needs

SMALL = {"width": 0.125, "num_mixes": 1}
ONLY_CE = {"weight_recon": 0.0, "weight_attribute": 0.0, "weight_content": 0.0, "weight_risk": 1.0}


def make(backbone, *, k=3, c=3, **switches):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = ContriMix.Config(**{**SMALL, **switches})
        return ContriMix(config, backbone=backbone, d=4, k=k, c=c)


def batch_of(n=6, c=3, k=3, seed=0, **needs):
    return fake_batch(Needs(smallest_side=64, unit=True, **needs), n=n, c=c, k=k, seed=seed)


def loss_of(method, batch, progress=0.5):
    return method.losses(batch, progress=progress)


def donors(batch, num_mixes):
    random = generator(batch.seed, "contrimix donors")
    return torch.randint(len(batch), (num_mixes, len(batch)), generator=random)


@pytest.mark.parametrize("recon", ["q90_max", "mean_l1"])
@pytest.mark.parametrize("absorbance", [True, False])
def test_equals_the_description(backbone, recon, absorbance):
    """Sections 4 and 6, a loop over mixes and images, classifier by classifier call, float64."""
    weight = {"recon": 0.2, "attribute": 0.3, "content": 0.4, "similarity": 0.5, "risk": 0.6}
    method = make(
        backbone,
        num_mixes=2,
        recon=recon,
        absorbance=absorbance,
        ce_input="original",
        normalise="image",
        **{f"weight_{name}": value for name, value in weight.items()},
    )
    batch = batch_of()
    losses = loss_of(method, batch)
    content, attribute = method.predictor.content, method.predictor.attribute
    x = batch.image
    a = to_absorbance(x) if absorbance else x
    z_c, z_a = content(a), attribute(a)
    z = torch.stack([z_a, *(z_a[column] for column in donors(batch, 2))])
    mixes, shown, gone_a, gone_c = [], [], [], []
    for m in range(3):
        g = torch.stack([torch.einsum("cs,shw->chw", z[m, n], z_c[n]) for n in range(len(x))])
        mixes.append(to_transmittance(g) if absorbance else g)
        shown.append(x if m == 0 else mixes[m].clip(0, 1))
        gone_a.append((attribute(g) - z[m]).double().abs().mean())
        gone_c.append((content(g) - z_c).double().abs().mean())
    error = ((mixes[0].clip(0, 1) if recon == "q90_max" else mixes[0]) - x).double().abs()
    expected = {"attribute": sum(gone_a) / 3, "content": sum(gone_c) / 3, "recon": error.mean()}
    if recon == "q90_max":
        q90 = error.flatten(1).quantile(0.9, dim=1)
        expected["recon"] = max(0.2 * q + 0.8 * error.mean() for q in q90)
    expected["similarity"] = torch.stack(
        [
            (-(z[i, n] - z[j, n] + 1e-6).double().norm() / 0.1).exp() * (i != j)
            for n in range(len(x))
            for i in range(3)
            for j in range(3)
        ]
    ).mean()
    shown = torch.cat(shown)
    shown = (shown - shown.mean((2, 3), keepdim=True)) / shown.std(
        (2, 3), correction=0, keepdim=True
    )
    logits = method.classifier.predictor(shown).double()
    expected["risk"] = F.cross_entropy(logits, batch.label.repeat(3))
    assert set(losses.parts) == {*expected, "attribute_spread"}
    for name, value in expected.items():
        torch.testing.assert_close(losses.parts[name].double(), value, rtol=1e-3, atol=1e-5)
    total = sum(weight[name] * value for name, value in expected.items())
    torch.testing.assert_close(losses.total.double(), total, rtol=1e-3, atol=1e-5)


def test_no_gradient_is_stopped(backbone):
    """Targets of the consistency terms teach, too: the gradient is that of finite differences."""
    method = make(backbone, num_mixes=2, **{**ONLY_CE, "weight_risk": 0.0, "weight_content": 1.0})
    batch = batch_of(n=3)
    bias = method.predictor.content.conv1.bias
    loss_of(method, batch).total.backward()
    slope = bias.grad[0].item()
    ends = []
    for step in (1e-2, -1e-2):
        with torch.no_grad():
            bias[0] += step
            ends.append(loss_of(method, batch).total.item())
            bias[0] -= step
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.1, abs=1e-3)


def test_own_attribute_gives_the_reconstruction_exactly(backbone, monkeypatch):
    method = make(backbone, num_mixes=2)
    seen = []
    monkeypatch.setattr(
        method.classifier, "losses", lambda batch, progress: seen.append(batch.image) or losses
    )
    losses = loss_of(make(backbone), batch_of())
    own = torch.arange(6).expand(3, 6)
    monkeypatch.setattr(ContriMix, "_donors", lambda self, batch: own)
    loss_of(method, batch_of())
    versions = seen[0].unflatten(0, (3, 6))
    assert torch.equal(versions[1], versions[0])
    assert torch.equal(versions[2], versions[0])
    torch.testing.assert_close(versions[0], method.predictor.reconstruct(batch_of().image))


def test_permuting_the_batch_permutes_everything(backbone):
    method = make(backbone).eval()
    batch = batch_of()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(
        method.predictor(batch.image)[order], method.predictor(batch[order].image)
    )


def test_donors_are_drawn_with_replacement_anew_each_step_and_only_in_training(backbone):
    method = make(backbone, num_mixes=3)
    batch = batch_of(n=30)
    donor = method._donors(batch)
    assert donor.shape == (4, 30)
    assert torch.equal(donor[0], torch.arange(30))
    assert len(donor[1].unique()) < 30
    assert torch.equal(donor, method._donors(batch))
    assert not torch.equal(donor, method._donors(replace(batch, seed=1)))
    assert method.eval()._donors(batch).shape == (1, 30)


def test_within_chunk_mixes_with_all_the_others_of_a_chunk(backbone):
    """Bug 6: in the released code of 2024 this mixing stops with an error."""
    donor = chunk_donors(12, 3)
    for place in range(12):
        assert set(donor[:, place].tolist()) == set(range(place // 4 * 4, place // 4 * 4 + 4))
    method = make(backbone, mixing="within_chunk", num_mixes=2)
    assert torch.isfinite(loss_of(method, batch_of()).total)
    with pytest.raises(InputError, match=r"7 images is not made of chunks of 3.*\n.*chunk 3"):
        loss_of(method, batch_of(n=7))
    assert torch.isfinite(loss_of(method.eval(), batch_of(n=7)).total)  # no mixes, no chunks


def test_evaluation_draws_nothing(backbone):
    """Bug 8: the released code draws rotations, flips and donors in evaluation."""
    method = make(backbone, post_mix=True, post_mix_noise=0.1, cutmix=True, num_mixes=2).eval()
    batch = batch_of()
    values = {loss_of(method, replace(batch, seed=seed)).total.item() for seed in range(4)}
    assert len(values) == 1
    logits = method.predictor(batch.image)
    assert torch.equal(logits, method.predictor(batch.image))


def test_post_mix_changes_what_the_classifier_sees(backbone, monkeypatch):
    """Bug 1: in the released code these transforms never run."""
    seen = {}
    for name, switches in (
        ("off", {}),
        ("turned", {"post_mix": True}),
        ("noisy", {"post_mix": True, "post_mix_noise": 0.05}),
    ):
        method = make(backbone, **switches)
        monkeypatch.setattr(
            method.classifier.predictor,
            "forward",
            lambda image, name=name: seen.update({name: image}) or torch.zeros(len(image), 3),
        )
        loss_of(method, batch_of(seed=1))
    symmetries = [
        turned.flip(axes) for k in range(4) for axes in ((), (2,))
        for turned in (seen["off"].rot90(k, (2, 3)),)
    ]  # fmt: skip
    assert not torch.equal(seen["off"], seen["turned"])
    assert any(torch.equal(seen["turned"], image) for image in symmetries)
    assert 0.01 < (seen["noisy"] - seen["turned"]).abs().mean() < 0.1


def ce_rows(method, batch):
    """Per-image cross-entropies (m, n) of a method without random draws behind the mixes."""
    p = method.predictor
    a = p.signal.enter(batch.image)
    z = p.attribute(a)
    rows = [
        F.cross_entropy(
            method.classifier.predictor(
                p.signal.leave(torch.einsum("bcs,bshw->bchw", used, p.content(a)))
            ),
            batch.label,
            reduction="none",
        )
        for used in (z, *(z[column] for column in donors(batch, method.config.num_mixes)))
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("how", ["mean", "max", "augreg"])
def test_aggregation_is_per_image(backbone, how):
    """Bug 5: the released code takes the maximum over different images."""
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method = make(plain, num_mixes=2, aggregate=how, **ONLY_CE)
    batch = batch_of()
    each = ce_rows(method, batch)
    of_image = []
    for column in each.T.tolist():
        mean = sum(column) / 3
        variance = sum((value - mean) ** 2 for value in column) / 3
        of_image.append({"mean": mean, "max": max(column), "augreg": mean + 10 * variance}[how])
    got = loss_of(method, batch).total.item()
    assert got == pytest.approx(sum(of_image) / len(of_image), rel=1e-4)


def test_legacy_order_mixes_images():
    each = torch.tensor([[0.0, 0.0, 0.0, 9.0], [9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]])
    assert aggregated(each, "max").tolist() == [9, 0, 9, 9]
    # The released `losses.reshape(-1, 3)`: rows of three in augmentation-major order.
    assert aggregated(each, "max", legacy_order=True).tolist() == [0, 9, 0, 9]
    assert aggregated(each, "mean", legacy_order=True).mean() == each.mean()


@given(st.integers(1, 5), st.integers(1, 6), st.floats(0, 5))
@settings(max_examples=20, deadline=None)
def test_equal_losses_aggregate_to_themselves(m, n, value):
    each = torch.full((m, n), value)
    for how in ("mean", "max", "augreg"):
        torch.testing.assert_close(aggregated(each, how), torch.full((n,), value))


@pytest.mark.parametrize("how", ["max", "augreg"])
def test_unknown_labels_are_left_out_of_the_aggregate(backbone, how):
    method = make(backbone, aggregate=how, num_mixes=2).eval()
    batch = batch_of()
    batch.label[2:] = -1
    risk = loss_of(method, batch).parts["risk"]
    torch.testing.assert_close(risk, loss_of(method, batch[:2]).parts["risk"])
    batch.label.fill_(-1)
    nothing = loss_of(method.train(), batch)
    assert nothing.parts["risk"] == 0
    nothing.total.backward()


def test_weights_of_zero_remove_terms(backbone):
    for name in ("recon", "attribute", "content", "similarity", "risk"):
        weight = {f"weight_{other}": 0.0 for other in ("recon", "attribute", "content", "risk")}
        method = make(backbone, **{**weight, f"weight_{name}": 2.0})
        losses = loss_of(method, batch_of())
        assert set(losses.parts) - {"attribute_spread"} == {name}
        torch.testing.assert_close(losses.total, 2 * losses.parts[name])


@pytest.mark.parametrize("classifier", ["erm", "contrimix-free"])
def test_without_mixes_on_originals_it_is_erm_step_by_step(make_backbone, steps, classifier):
    batches = [batch_of(seed=seed) for seed in range(4)]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        erm = ERM(ERM.Config(), backbone=make_backbone(), d=4, k=3, c=3)
    switches = {"num_mixes": 0, "ce_input": "original", "test_input": "original", **ONLY_CE}
    if classifier != "erm":  # the path of the aggregates, with one version of each image
        switches["aggregate"] = "max"
    ours = make(make_backbone(), **switches)
    for a, b in zip(steps(erm, batches, lr=1e-2), steps(ours, batches, lr=1e-2), strict=True):
        torch.testing.assert_close(a.total, b.total, rtol=1e-6, atol=1e-7)
    state = ours.classifier.state_dict()
    for name, value in erm.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-5, atol=1e-6)
    image = batches[0].image
    torch.testing.assert_close(erm.eval().predictor(image), ours.eval().predictor(image))


def learning(method):
    named = method.predictor.named_parameters()
    return {name.split(".")[0] for name, p in named if p.grad is not None}


def test_modes(make_backbone):
    batch = batch_of()
    for mode, parts, taught in (
        ("jointly", {"recon", "attribute", "content", "risk"}, {"inner", "content", "attribute"}),
        ("encoders", {"recon", "attribute", "content"}, {"content", "attribute"}),
        ("backbone", {"risk"}, {"inner"}),
    ):
        method = make(make_backbone(), mode=mode)
        losses = loss_of(method, batch)
        losses.total.backward()
        assert set(losses.parts) - {"attribute_spread"} == parts
        assert learning(method) == taught
        grouped = {id(p) for group in method.groups() for p in group["params"]}
        assert grouped == {id(p) for p in method.parameters() if p.grad is not None}


def test_encoders_mode_does_not_run_the_classifier(backbone):
    """Bug 13."""
    method = make(backbone, mode="encoders")
    method.classifier.predictor.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    loss_of(method, batch_of())


def test_one_pass_a_step(backbone):
    """Bugs 13, 14 and 20: encoders run on originals and on mixes, the classifier once."""
    method = make(backbone, num_mixes=3)
    seen = {"content": [], "attribute": [], "inner": []}
    for name, sizes in seen.items():
        method.predictor.get_submodule(name).register_forward_pre_hook(
            lambda _, given, sizes=sizes: sizes.append(len(given[0]))
        )
    loss_of(method, batch_of())
    assert seen == {"content": [6, 24], "attribute": [6, 24], "inner": [24]}
    assert method.classifier.predictor.backbone[1].num_batches_tracked == 1


def test_warm_up_trains_the_encoders_alone(backbone):
    config = ContriMix.Config(ce_warmup=0.1, ce_warmup_sum=2.0)
    weight = weights_at(config, 0.05)
    assert weight["risk"] == 0
    assert sum(weight.values()) == pytest.approx(2)
    assert weight["content"] == pytest.approx(3 * weight["recon"])
    assert weights_at(config, 0.1)["risk"] == 0.5
    method = make(backbone, ce_warmup=0.1)
    assert "risk" not in loss_of(method, batch_of(), progress=0.0).parts
    assert "risk" in loss_of(method, batch_of(), progress=0.1).parts


def test_cutmix_weighs_both_labels(make_backbone):
    """With all of one label CutMix changes pixels, not the loss's target."""
    batch = batch_of()
    plain, cut = make(make_backbone()), make(make_backbone(), cutmix=True)
    assert loss_of(plain, batch).parts["risk"] != loss_of(cut, batch).parts["risk"]
    blank = replace(batch, image=torch.full_like(batch.image, 0.5))
    blank = replace(blank, label=torch.zeros_like(batch.label))
    torch.testing.assert_close(
        loss_of(plain, blank).parts["risk"], loss_of(cut, blank).parts["risk"]
    )


CLASSIFIERS = sorted(
    name for name in METHODS if name != "contrimix" and not METHODS[name].needs.views
)


@pytest.mark.parametrize("name", sorted(name for name in METHODS if METHODS[name].needs.views))
def test_self_supervision_is_no_classifier(make_backbone, name):
    with pytest.raises(InputError, match="no classifier"):
        make(make_backbone(), classifier=name)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_before_any_classifier(make_backbone, name):
    """The classifier sees M + 1 versions of each image, with all that is known of it."""
    cls = METHODS[name]
    options = {"task": "linear"} if name == "frozen" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ContriMix.Config(**SMALL, classifier=name, classifier_options=options)
        backbone = make_backbone(3 + ContriMix.extra_channels(config))
        method = ContriMix(config, backbone=backbone, d=4, k=3, c=3)
    assert method.native == cls(cls.Config(**options), backbone=backbone, d=4, k=3, c=3).native
    assert method.needs == replace(cls.needs, smallest_side=64, unit=True)
    batch = fake_batch(method.needs, n=6)
    seen = []
    inner = method.classifier.losses
    method.classifier.losses = lambda batch, progress: (
        seen.append(batch) or inner(batch, progress=progress)
    )
    losses = loss_of(method, batch)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert {"recon", "attribute", "content", "risk"} <= set(losses.parts)
    assert method.predictor.content.conv1.weight.grad.abs().sum() > 0
    big = seen[0]
    for field in ("label", "is_control", "context", "domain", "row"):
        assert torch.equal(getattr(big, field), getattr(batch, field).repeat(2)), field
    assert big.seed == derive(batch.seed, "contrimix classifier")
    del method.classifier.losses
    method.eval()
    context = Context(image=batch.image, is_control=batch.is_control)
    log_p = ADAPTERS[method.native]().fit(method.predictor, context).predict(batch.image)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(len(batch)))


def test_what_needs_losses_by_image_refuses_other_classifiers():
    for switches in ({"aggregate": "max"}, {"cutmix": True}, {"extra_linear": True}):
        with pytest.raises(InputError, match=r"classifier 'cs-arm-bn' and .*\n.*take .* erm"):
            ContriMix.Config(classifier="cs-arm-bn", **switches)
    with pytest.raises(InputError, match="another method"):
        ContriMix.Config(classifier="contrimix")
    with pytest.raises(InputError, match="there is no method called 'emr'"):
        make(nn.Identity(), classifier="emr")
    with pytest.raises(InputError, match=r"contrimix\.classifier_options\. has no setting 'x'"):
        make(nn.Identity(), classifier_options={"x": 1})
    for switches in (
        {"mode": "backbone", "weight_risk": 0.0},
        {"mode": "backbone", "ce_warmup": 0.1},
    ):
        with pytest.raises(InputError, match="all weights of the mode 'backbone' are 0"):
            ContriMix.Config(**switches)
    for wrong in ({"num_mixes": -1}, {"num_attributes": 0}, {"width": 0}, {"weight_risk": -1}):
        with pytest.raises(InputError):
            ContriMix.Config(**wrong)


def test_options_of_the_classifier_reach_it(make_backbone):
    options = {"context_train": "controls"}
    method = make(make_backbone(), classifier="cs-arm-bn", classifier_options=options)
    assert method.classifier.config.context_train == "controls"
    assert method.native == "controls"


def test_the_predictor_shows_reconstructions_or_originals(make_backbone):
    image = batch_of().image
    method = make(make_backbone(), normalise="image").eval()
    p = method.predictor
    made = p.reconstruct(image)
    assert made.min() >= 0
    assert made.max() <= 1
    flat = made.flatten(2)
    shown = (made - flat.mean(2)[..., None, None]) / flat.std(2, correction=0)[..., None, None]
    torch.testing.assert_close(p(image), p.inner(shown), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(p.head(p.features(image)), p(image))
    p.test_input = "original"
    p.normalise = "none"
    torch.testing.assert_close(p(image), p.inner(image))


def test_the_validation_loss_is_of_the_image_shown_at_test(make_backbone):
    batch = batch_of()
    for test_input in ("original", "self_recon"):
        method = make(make_backbone(), ce_input="original", test_input=test_input).eval()
        expected = F.cross_entropy(method.predictor(batch.image), batch.label)
        torch.testing.assert_close(loss_of(method, batch).parts["risk"], expected)


@pytest.mark.parametrize("adapter", ["batch", "controls", "union", "t3a", "tent", "domain", "lame"])
def test_adapters_find_the_classifier_behind(make_backbone, adapter):
    method = make(make_backbone()).eval()
    with torch.no_grad():
        loss_of(method.train(), batch_of(seed=1))  # running statistics that are not 0 and 1
    method.eval()
    batch = batch_of(controls=True)
    context = Context(image=batch.image, is_control=batch.is_control)
    before = copy.deepcopy(method.predictor.state_dict())
    adapted = ADAPTERS[adapter]().fit(method.predictor, context)
    log_p = adapted.predict(batch.image)
    plain = ADAPTERS["source"]().fit(method.predictor, context).predict(batch.image)
    if adapter != "domain":
        assert not torch.allclose(log_p, plain, atol=1e-4)
    again = ADAPTERS[adapter]().restore(method.predictor, adapted.state())
    torch.testing.assert_close(again.predict(batch.image), log_p)
    now = method.predictor.state_dict()
    assert all(torch.equal(now[name], value) for name, value in before.items())


def test_a_rule_of_the_classifier_sees_reconstructions(make_backbone):
    method = make(make_backbone(15), classifier="arm-cml").eval()
    batch = batch_of()
    context = Context(image=batch.image, is_control=batch.is_control)
    p = method.predictor
    conditioned = p.condition(context)
    assert isinstance(conditioned, Reconstructing)
    assert p.inner.context_map is None
    expected = p.inner.condition(replace(context, image=p.seen(batch.image)))
    torch.testing.assert_close(conditioned(batch.image), expected(p.seen(batch.image)))
    empty = replace(context, image=batch.image[:0], is_control=batch.is_control[:0])
    assert torch.equal(p.condition(empty)(batch.image), p(batch.image))


def test_state_of_the_predictor_holds_each_weight_once(backbone):
    predictor = make(backbone).predictor
    storages = [tensor.data_ptr() for tensor in predictor.state_dict().values()]
    assert len(storages) == len(set(storages))
    assert type(predictor).features is not Predictor.features


def test_extra_linear(make_backbone):
    method = make(make_backbone(), extra_linear=True)
    assert [type(layer) for layer in method.predictor.head] == [nn.Linear, nn.Linear]
    loss_of(method, batch_of()).total.backward()
    assert method.predictor.head[1].weight.grad is not None


def test_encoders_come_from_another_run(make_backbone, tmp_path):
    first = make(make_backbone(), mode="encoders")
    with torch.no_grad():
        for p in first.predictor.content.parameters():
            p.add_(1)
    torch.save({"method": first.state_dict()}, tmp_path / "best.pt")
    second = make(make_backbone(), mode="backbone", weights=tmp_path)
    for name in ("content", "attribute"):
        ours, theirs = (m.predictor.get_submodule(name).state_dict() for m in (second, first))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    second.learn_design(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match="as many channels"):
        make(make_backbone(), mode="backbone", weights=tmp_path, num_attributes=7)
    with pytest.raises(InputError, match="encoders of random weights"):
        make(make_backbone(), mode="backbone").learn_design(torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_published_configurations(make_backbone, name):
    found = recipe(name, width=0.125)
    options = from_dict(ContriMix.Config, found.run.options)
    method = ContriMix(options, backbone=make_backbone(), d=4, k=3, c=3)
    losses = loss_of(method, batch_of(), progress=0.9)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert found.run.view.normalise == "unit"
    if options.mixing == "within_chunk":
        assert found.run.train.chunk == options.num_mixes + 1
        assert found.run.train.num_perturbed % found.run.train.chunk == 0
    assert recipe(name).run == RECIPES[name].run


def test_defaults_are_the_published_model():
    assert RECIPES["camelyon-2024"].run.options == {}
    config = ContriMix.Config()
    assert (config.num_attributes, config.num_mixes, config.width) == (4, 4, 1.0)
    assert RECIPES["camelyon-2024"].run.train.weight_decay == 1e-2  # bug 4: what was effective
    with pytest.raises(InputError, match="camelyon-2023"):
        recipe("camelyon-2023")


def test_it_does_its_job(steps):
    """Images of two stains that differ in colour alone: mixes take the donor's colour."""
    content = F.avg_pool2d(torch.rand(8, 2, 64, 64, generator=generator(0, "job")), 9, 1, 4)
    content = content - content.amin((2, 3), keepdim=True)
    stain = torch.tensor(
        [[[0.6, 0.1], [0.9, 0.3], [0.2, 0.5]], [[0.2, 0.6], [0.3, 0.2], [0.9, 0.1]]]
    )
    domain = torch.arange(8) % 2
    image = 10 ** -torch.einsum("ncs,nshw->nchw", stain[domain], content)
    batch = replace(batch_of(n=8), image=image, domain=domain)
    weight = {"recon": 1.0, "attribute": 0.0, "content": 0.0, "similarity": 0.3}
    method = make(
        nn.Identity(),
        mode="encoders",
        num_attributes=2,
        recon="mean_l1",
        width=0.25,
        **{f"weight_{name}": value for name, value in weight.items()},
    )
    history = [
        losses.parts
        for losses in steps(method, [replace(batch, seed=s) for s in range(60)], lr=1e-2)
    ]
    assert history[-1]["recon"] < 0.4 * history[0]["recon"]
    assert history[-1]["attribute_spread"] > 2 * history[0]["attribute_spread"]
    p = method.eval().predictor
    with torch.no_grad():
        mixed = p.mix(image, image.roll(1, 0))
    colour = image.mean((2, 3))
    to_own, to_donor = (
        (mixed.mean((2, 3)) - other).norm(dim=1) for other in (colour, colour.roll(1, 0))
    )
    assert (to_donor < 0.5 * to_own).all()
