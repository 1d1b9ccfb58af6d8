"""ABRA's outer problem: the loss, its limits, every switch, its ablation, and its job."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from erm_twin import assert_follows_erm, build

from evenfield import seeds
from evenfield.data.fake import fake_batch
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.methods.abra import ABRA, ablation_rows
from evenfield.methods.dsu import uncertain
from evenfield.nn.backbones import build_backbone
from evenfield.nn.histogram import matched
from evenfield.nn.places import changing
from evenfield.nn.restyle import mixing_shares, partners, style_mixed
from evenfield.nn.views import View, gap
from evenfield.types import Needs

ALWAYS = {"apply_prob": 1.0, "adv_warmup": 0.0, "margin_warmup": 0.0}
SWITCHES = {
    "spread_ref": ("between_experiment", "ema", "ema_between_experiment"),
    "structure": ("lowrank", "shared_per_experiment"),
    "offset_sharing": ("shared_per_experiment",),
    "adversary": ("scale", "hybrid", "gauss", "mix", "efd", "random_direction", "none"),
    "constraint": ("ball",),
    "T": (3,),
    "floor": (None,),
    "head": ("ce", "arc0.2+ce0.8"),
    "neck": (6,),
    "align": ("none", "kl", "feat", "coral", "mmd", "js+coral"),
    "stages": (("1",), ("stem", "1"), ("2",)),
    "inner_bn": ("eval", "dual"),
}
VARIANTS = [{}, *({name: value} for name, values in SWITCHES.items() for value in values)]
NAMES = ["-".join(map(str, *v.items())) if v else "default" for v in VARIANTS]


def attack(backbone, **switches):
    return build("abra", backbone, **ALWAYS | switches)


@pytest.fixture(params=VARIANTS, ids=NAMES)
def variant(request, make_backbone):
    return attack(make_backbone(), **request.param)


# Every switch


@pytest.mark.filterwarnings("ignore:a batch of one experiment")
def test_every_variant_gives_finite_parts_and_gradients(variant):
    few = 2 if variant.config.neck else 1  # BatchNorm of pooled features has no statistics of one
    for batch in (fake_batch(Needs(controls=True)), fake_batch(n=3)[:few]):
        losses = variant.losses(batch, progress=0.5)
        variant.zero_grad()
        losses.total.backward()
        assert all(torch.isfinite(part) and part.shape == () for part in losses.parts.values())
        learning = [(name, p) for name, p in variant.named_parameters() if p.requires_grad]
        assert not [name for name, p in learning if p.grad is None]
        assert all(torch.isfinite(p.grad).all() for _, p in learning)


def test_every_variant_is_pure_and_reproducible(variant):
    batch = fake_batch(num_contexts=3)
    twin = pickle.loads(pickle.dumps(variant))
    ours, theirs = (m.losses(batch, progress=0.5) for m in (variant, twin))
    assert torch.equal(ours.total, theirs.total)
    assert all(torch.equal(part, theirs.parts[name]) for name, part in ours.parts.items())
    again = copy.deepcopy(variant)
    again.load_state_dict(twin.state_dict())
    other = replace(batch, seed=1)
    assert torch.equal(
        again.losses(other, progress=0.5).total, twin.losses(other, progress=0.5).total
    )


def test_every_variant_in_eval_mode_is_the_plain_network(variant):
    variant.eval()
    batch = fake_batch(num_contexts=3)
    before = copy.deepcopy(variant.state_dict())
    losses = variant.losses(batch, progress=0.5)
    logits = variant.predictor.head(variant.predictor.features(batch.image))
    assert torch.equal(losses.total, torch.nn.functional.cross_entropy(logits, batch.label))
    assert all(torch.equal(v, before[name]) for name, v in variant.state_dict().items())
    assert torch.equal(variant.predictor(batch.image), logits)


def test_every_variant_works_under_autocast(variant):
    batch = fake_batch(num_contexts=2)
    with torch.autocast("cpu", torch.bfloat16):
        losses = variant.losses(batch, progress=0.5)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(torch.isfinite(p.grad).all() for p in variant.parameters() if p.requires_grad)


def test_autocast_agrees_with_float32(make_backbone):
    """The drawn shift is the same; the search, which follows gradients, is left out."""
    batch = fake_batch()
    for align in ("js", "feat", "mmd"):
        method = attack(make_backbone(), adversary="gauss", align=align)
        full = method.losses(batch, progress=0.5)
        with torch.autocast("cpu", torch.bfloat16):
            half = method.losses(batch, progress=0.5)
        for name in ("risk", "adversarial", "alignment"):
            torch.testing.assert_close(half.parts[name], full.parts[name], rtol=0.1, atol=0.1)


# Limits


def test_without_perturbation_it_is_erm_or_arcface_step_by_step(make_backbone, steps):
    assert_follows_erm("abra", make_backbone, steps, head="ce", apply_prob=0.0)
    # Perturbed passes that weigh nothing leave no trace either.
    silent = {**ALWAYS, "lambda_a": 0.0, "lambda_d": 0.0}
    assert_follows_erm("abra", make_backbone, steps, head="ce", **silent)
    batches = [fake_batch(seed=seed) for seed in range(4)]
    arcface = build("arcface", make_backbone())
    for switches in ({"apply_prob": 0.0}, {"lambda_a": 0.0, "lambda_d": 0.0, "apply_prob": 1.0}):
        method, twin = build("abra", make_backbone(), **switches), copy.deepcopy(arcface)
        for ours, theirs in zip(
            steps(method, batches, lr=1e-3), steps(twin, batches, lr=1e-3), strict=True
        ):
            torch.testing.assert_close(ours.parts["risk"], theirs.total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.3, 0.9])
def test_warm_ups_are_shares_of_the_training(backbone, progress):
    batch = fake_batch()
    method = build("abra", backbone, apply_prob=1.0, adv_warmup=0.3, margin_warmup=0.2, m=0.4)
    parts = method.losses(batch, progress=progress).parts
    assert bool(parts["perturbed"]) == (progress >= 0.3)
    assert bool(parts["adversarial"]) == (progress >= 0.3)
    m = 0.4 * min(1, progress / 0.2)
    plain = build("arcface", backbone, m=m, margin_warmup=0.0)
    torch.testing.assert_close(parts["risk"], plain.losses(batch, progress=0.0).total)


def test_a_share_of_the_batches_is_perturbed(backbone):
    method = build("abra", backbone, apply_prob=0.3, adv_warmup=0.0, stages=("2",))
    batch = fake_batch(n=3)
    with torch.no_grad():
        drawn = [
            method.losses(replace(batch, seed=seed), progress=0.5).parts["perturbed"]
            for seed in range(80)
        ]
    assert 12 < sum(drawn) < 36


def test_the_total_is_the_weighted_sum(backbone):
    method = attack(backbone, lambda_a=0.3, lambda_d=7.0)
    losses = method.losses(fake_batch(), progress=0.5)
    risk, adversarial, alignment = (
        losses.parts[name] for name in ("risk", "adversarial", "alignment")
    )
    torch.testing.assert_close(losses.total, risk + 0.3 * adversarial + 7.0 * alignment)


def test_the_published_mixture_of_heads(backbone):
    """0.8 CE + 0.2 x half of ArcFace; the linear head is deployed."""
    method, batch = attack(backbone, head="arc0.2+ce0.8", m=0.2, adversary="none"), fake_batch()
    z = method.predictor.features(batch.image)
    theta = method.arc.cosine(z).arccos()
    moved = theta + 0.2 * torch.nn.functional.one_hot(batch.label, 3)
    arc = torch.nn.functional.cross_entropy(30 * moved.cos(), batch.label)
    linear = torch.nn.functional.cross_entropy(method.predictor.head(z), batch.label)
    total = method.losses(batch, progress=0.5).total
    torch.testing.assert_close(total, 0.8 * linear + 0.1 * arc, rtol=1e-4, atol=1e-4)
    assert isinstance(method.predictor.head, torch.nn.Linear)


# Its baseline modes are the published methods


def perturbed_by(backbone, method, batch, place, change):
    with changing(backbone, {place: change}):
        z = method.predictor.features(batch.image)
    return View(z, method.predictor.head(z))


@pytest.mark.parametrize("adversary", ["gauss", "mix", "efd"])
def test_baseline_modes_are_dsu_mixstyle_and_efdmix(backbone, adversary):
    batch = fake_batch(seed=3)
    method = attack(backbone, adversary=adversary, stages=("stem",), floor=None, alpha=0.4)
    parts = method.losses(batch, progress=0.5).parts
    random = seeds.numpy_generator(3, "abra")
    random.random()

    def change(x):
        if adversary == "gauss":
            noise = torch.from_numpy(random.standard_normal((len(x), 2, 8), dtype="float32"))
            return uncertain(x, noise.transpose(0, 1), None)
        share = mixing_shares(random, len(x), 0.4)
        partner = partners(batch.domain, "random", random)
        return (style_mixed if adversary == "mix" else matched)(x, share, partner)

    view = perturbed_by(backbone, method, batch, "stem", change)
    clean = View(z := method.predictor.features(batch.image), method.predictor.head(z))
    expected = gap("js", clean, view, batch.label >= 0)
    torch.testing.assert_close(parts["alignment"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts["inner_before"], parts["inner_after"])


def test_the_nine_rows_of_the_ablation(make_backbone):
    rows, batch = ablation_rows(), fake_batch()
    assert [name.split("-")[0] for name in rows] == [str(i) for i in range(9)]
    assert len({str(options) for options in rows.values()}) == 9
    parts = {
        name: build("abra", make_backbone(), **options, **ALWAYS).losses(batch, progress=0.5)
        for name, options in rows.items()
    }
    erm = build("erm", make_backbone()).losses(batch, progress=0.5).total
    torch.testing.assert_close(parts["0-erm"].total, erm)
    arcface = build("arcface", make_backbone()).losses(batch, progress=0.5).total
    torch.testing.assert_close(parts["1-arcface"].total, arcface)
    assert [bool(x.parts["perturbed"]) for x in parts.values()] == [False] * 2 + [True] * 7
    aligned = [bool(x.parts["alignment"]) for x in parts.values()]
    assert aligned == [False] * 6 + [True] * 3


# Batches of every kind


def test_controls_enter_no_loss(backbone):
    """Their predictions weigh nothing: head outputs of theirs get no gradient."""
    method, batch = attack(backbone), fake_batch(Needs(controls=True))
    seen = []
    hook = method.predictor.head.register_forward_hook(
        lambda _, __, logits: (logits.retain_grad(), seen.append(logits))[1]
    )
    with torch.enable_grad():
        method.losses(batch, progress=0.5).total.backward()
    hook.remove()
    for logits in (seen[0], seen[-1]):
        assert logits.grad[batch.is_control].abs().max() == 0
        assert logits.grad[~batch.is_control].abs().max() > 0


def test_unlabelled_images_are_aligned_only(backbone):
    batch = fake_batch()
    batch.label.fill_(-1)
    losses = attack(backbone).losses(batch, progress=0.5)
    losses.total.backward()
    assert losses.parts["risk"] == losses.parts["adversarial"] == 0
    assert losses.total > 0
    assert backbone[0].weight.grad.abs().max() > 0


def test_one_experiment_in_a_batch(backbone):
    batch = fake_batch(num_contexts=1)
    for reference in ("minibatch", "ema"):
        assert torch.isfinite(
            attack(backbone, spread_ref=reference).losses(batch, progress=0.5).total
        )
    with pytest.warns(EvenfieldWarning, match="one experiment"):
        losses = attack(backbone, spread_ref="between_experiment").losses(batch, progress=0.5)
    assert torch.isfinite(losses.total)


def test_a_running_spread_is_seen_in_training_only_and_also_when_calm(backbone):
    method, batch = build("abra", backbone, spread_ref="ema", apply_prob=0.0), fake_batch()
    before = copy.deepcopy(method.uncertainties.state_dict())
    method.eval().losses(batch, progress=0.5)
    assert all(torch.equal(v, before[n]) for n, v in method.uncertainties.state_dict().items())
    method.train().losses(batch, progress=0.0)
    assert method.uncertainties.num_seen == 1
    assert (method.uncertainties.spread_stem > 0).all()


@pytest.mark.parametrize("name", ["cnn-small", "resnet18", "resnet18-ibn-a", "densenet121"])
def test_built_in_backbones(name):
    torch.manual_seed(0)
    backbone, d = build_backbone(name, 4)
    config = ABRA.Config(**ALWAYS, spread_ref="ema")
    method = ABRA(config, backbone=backbone, d=d, k=3, c=4)
    losses = method.losses(fake_batch(n=4, c=4, side=32), progress=0.5)
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())
    assert losses.parts["a_rms"] > 0


# Guards, errors, the job


def test_guards_tell_a_collapse(make_backbone):
    method, batch = attack(make_backbone()), fake_batch()
    healthy = method.losses(batch, progress=0.5).parts
    with torch.no_grad():
        backbone_out = method.predictor.backbone[3].weight
        backbone_out.zero_()
        method.predictor.backbone[4].bias.fill_(1.0)
    collapsed = method.losses(batch, progress=0.5).parts
    assert collapsed["effective_rank"] == pytest.approx(1.0)
    assert collapsed["mean_cosine"] == pytest.approx(1.0)
    assert collapsed["centre_spread"] == pytest.approx(0.0, abs=1e-3)
    assert healthy["effective_rank"] > 1.01
    assert healthy["mean_cosine"] < 0.999
    assert healthy["centre_spread"] > 0.01


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"stages": ("nowhere",)}, "no place 'nowhere'"),
        ({"stages": ()}, "no place of the backbone"),
        ({"T": 0}, "T is 0"),
        ({"rho": -1.0}, "rho is -1"),
        ({"structure": "lowrank", "adversary": "hybrid"}, "scales channels"),
        ({"structure": "lowrank", "spread_ref": "ema"}, "keeps no directions"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(backbone, switches, message):
    with pytest.raises(InputError, match=message):
        build("abra", backbone, **switches)


def test_it_does_its_job(make_backbone, steps):
    """Under the same search its network is hurt less than one trained with the margin alone."""

    def hurt(name, **switches):
        method = build(name, make_backbone(), **switches)
        list(steps(method, [fake_batch(seed=seed) for seed in range(60)], lr=1e-2))
        judge = attack(make_backbone(), T=3)
        judge.predictor.load_state_dict(method.predictor.state_dict())
        with torch.no_grad():
            parts = [
                judge.losses(fake_batch(seed=seed), progress=1.0).parts
                for seed in range(1000, 1006)
            ]
        return {name: sum(p[name].item() for p in parts) / len(parts) for name in parts[0]}

    ours, theirs = hurt("abra", **ALWAYS), hurt("arcface", margin_warmup=0.0)
    assert ours["adversarial"] < 0.75 * theirs["adversarial"]
    assert ours["alignment"] < theirs["alignment"]
    assert ours["effective_rank"] > 1.5
