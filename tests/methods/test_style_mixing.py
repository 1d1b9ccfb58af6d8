"""MixStyle and EFDMix inside training: their draws, partners, limits, and their job."""

import pytest
import torch
from erm_twin import assert_follows_erm, build

from evenfield import seeds
from evenfield.data.fake import fake_batch
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.nn.histogram import matched
from evenfield.nn.places import changing
from evenfield.nn.restyle import partners, style_mixed

FORMULA = {"mixstyle": style_mixed, "efdmix": matched}


@pytest.fixture(params=list(FORMULA))
def name(request):
    return request.param


@pytest.mark.parametrize("kind", ["random", "other-domain"])
def test_the_batch_is_mixed_by_its_own_draws(name, kind, backbone):
    method, batch = build(name, backbone, p=1.0, partner=kind), fake_batch(seed=5)

    def rebuilt(x, place):
        random = seeds.numpy_generator(5, name, place)
        random.random()
        partner = partners(batch.domain, kind, random)
        share = torch.from_numpy(random.beta(0.1, 0.1, len(x))).float()
        return FORMULA[name](x, share, partner)

    with changing(backbone, {p: lambda x, p=p: rebuilt(x, p) for p in ("1", "2")}):
        logits = method.predictor(batch.image)
    expected = torch.nn.functional.cross_entropy(logits, batch.label)
    torch.testing.assert_close(method.losses(batch, progress=0).total, expected)


def test_eval_mode_is_the_plain_network_bit_for_bit(name, backbone):
    batch = fake_batch()
    totals = [
        build(kind, backbone, **switches).eval().losses(batch, progress=0).total
        for kind, switches in ((name, {"p": 1.0}), ("erm", {}))
    ]
    assert torch.equal(*totals)


def test_without_a_draw_it_is_erm(name, make_backbone, steps):
    assert_follows_erm(name, make_backbone, steps, p=0.0)


def test_a_single_domain_without_partner_is_left_as_it_is(name, backbone):
    batch = fake_batch(num_contexts=1)
    method = build(name, backbone, p=1.0, partner="other-domain")
    with pytest.warns(EvenfieldWarning, match="one domain"):
        ours = method.losses(batch, progress=0).total
    torch.testing.assert_close(ours, build("erm", backbone).losses(batch, progress=0).total)


def test_one_image_is_enough(name, backbone):
    losses = build(name, backbone, p=1.0).losses(fake_batch()[:1], progress=0)
    losses.total.backward()
    assert torch.isfinite(losses.total)


def test_settings_are_checked_before_training(name, backbone):
    with pytest.raises(InputError, match="no place '9'"):
        build(name, backbone, stages=("9",))
    with pytest.raises(InputError, match="alpha is 0"):
        build(name, backbone, alpha=0.0)


def test_it_does_its_job(name, make_backbone, steps):
    """Predictions depend less on whose statistics the stem's features have than those of ERM."""

    def dependence(kind, **switches):
        method = build(kind, make_backbone(), **switches)
        list(steps(method, [fake_batch(seed=seed) for seed in range(80)], lr=1e-2))
        method.eval()
        batch, total = fake_batch(seed=1000, n=60), 0.0
        partner = torch.arange(60).roll(1)
        with torch.no_grad():
            plain = method.predictor(batch.image).softmax(1)
            change = {"stem": lambda x: FORMULA[name](x, torch.ones(60), partner)}
            with changing(method.predictor.backbone, change):
                total = (method.predictor(batch.image).softmax(1) - plain).abs().sum(1).mean()
        return total.item()

    mixed = dependence(name, p=1.0, alpha=0.5, stages=("stem",))
    assert mixed < 0.8 * dependence("erm")
