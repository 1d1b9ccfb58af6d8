"""The rules that choose statistics: equations, limits, fallbacks."""

import copy

import pytest
import torch
from adapter_cases import context_of, images, predictor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evenfield.adapt import ADAPTERS, Adapter
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.nn.norm import batch_norms, moments, normalising, union_rule
from evenfield.nn.predictor import Predictor
from evenfield.types import Context

KINDS = ["1d", "2d", "3d"]


def make(name: str, **config: object) -> Adapter:
    return ADAPTERS[name](ADAPTERS[name].Config(**config))


def first_layer(predictor_: Predictor) -> nn.Module:
    return next(iter(batch_norms(predictor_).values()))


def first_input(model: Predictor, x: torch.Tensor) -> torch.Tensor:
    """What the first BatchNorm layer sees of some images."""
    seen: list[torch.Tensor] = []
    hook = first_layer(model).register_forward_hook(lambda _m, args, _y: seen.append(args[0]))
    with torch.no_grad():
        model.eval()(x)
    hook.remove()
    return seen[0]


def joint_forward(model: Predictor, x: torch.Tensor) -> torch.Tensor:
    """The train-mode pass, biased statistics of everything, nothing tracked."""
    with torch.no_grad(), normalising(other := copy.deepcopy(model).eval(), union_rule):
        return other(x).log_softmax(1)


@pytest.mark.parametrize("kind", KINDS)
def test_union_statistics_are_the_biased_moments_of_the_concatenation(kind: str) -> None:
    model, context = predictor(kind), context_of(12, 20)
    layer = first_layer(make("union").fit(model, context).model)
    rows = first_input(model, context.image).double().movedim(1, 0).flatten(1)
    mean = rows.mean(1)
    torch.testing.assert_close(layer.running_mean.double(), mean, atol=1e-6, rtol=0)
    var = (rows - mean[:, None]).square().mean(1)
    torch.testing.assert_close(layer.running_var.double(), var, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "side"), [("union", "image"), ("batch", "perturbed"), ("controls", "controls")]
)
def test_adapt_then_predict_is_the_joint_forward(kind: str, name: str, side: str) -> None:
    model, context = predictor(kind), context_of(12, 20)
    x = getattr(context, side)
    log_p = make(name).fit(model, context).predict(x)
    torch.testing.assert_close(log_p, joint_forward(model, x), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_equals_the_joint_forward_even_in_chunks(kind: str) -> None:
    model, context = predictor(kind), context_of(13, 21)
    exact = make("union", chunk=7, exact=True).fit(model, context)
    expected = joint_forward(model, context.image)
    torch.testing.assert_close(exact.predict(context.image), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["union", "batch", "domain", "controls"])
def test_chunks_are_pooled_exactly_in_the_first_layer(name: str) -> None:
    model, context = predictor(), context_of(13, 21)
    context.image.add_(torch.linspace(0, 9, 34)[:, None, None, None])  # a drift over the plate
    whole = first_layer(make(name).fit(model, context).model)
    parts = first_layer(make(name, chunk=7).fit(model, context).model)
    torch.testing.assert_close(parts.running_mean, whole.running_mean, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(parts.running_var, whole.running_var, atol=1e-5, rtol=1e-5)


def test_pooled_batches_of_means_0_and_4_give_variance_4_98() -> None:
    model = Predictor(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()), nn.Linear(16, 2)).eval()
    x = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean()) / x.std(correction=0) * 0.98**0.5
    context = Context(image=torch.cat([x, x + 4]), is_control=torch.zeros(128, dtype=torch.bool))
    layer = first_layer(make("domain", chunk=64).fit(model, context).model)
    assert layer.running_var.item() == pytest.approx(4.98, abs=1e-4)


def test_domain_is_the_rule_of_batch() -> None:
    model, context, x = predictor(), context_of(12, 20), images(5, seed=8)
    domain = make("domain").fit(model, context).predict(x)
    assert torch.equal(domain, make("batch").fit(model, context).predict(x))


@pytest.mark.parametrize("kind", KINDS)
def test_union_without_controls_is_batch_with_a_warning(kind: str) -> None:
    model, context, x = predictor(kind), context_of(12, 0), images(5, seed=8)
    with pytest.warns(EvenfieldWarning, match=r"union: plate P1: 0 control"):
        union = make("union").fit(model, context)
    assert torch.equal(union.predict(x), make("batch").fit(model, context).predict(x))


def test_union_without_perturbed_images_is_controls() -> None:
    model, context, x = predictor(), context_of(0, 12), images(5, seed=8)
    expected = make("controls").fit(model, context).predict(x)
    torch.testing.assert_close(make("union").fit(model, context).predict(x), expected)


@pytest.mark.parametrize("num_controls", [0, 1])
def test_controls_falls_back_to_the_source(num_controls: int) -> None:
    model, x = predictor(), images(5, seed=8)
    with pytest.warns(EvenfieldWarning, match="fewer than 2: the source's"):
        adapted = make("controls").fit(model, context_of(12, num_controls))
    torch.testing.assert_close(adapted.predict(x), model.eval()(x).log_softmax(1).detach())


def test_batch_falls_back_to_the_source() -> None:
    model, x = predictor(), images(5, seed=8)
    with pytest.warns(EvenfieldWarning, match="no perturbed image"):
        adapted = make("batch").fit(model, context_of(0, 12))
    torch.testing.assert_close(adapted.predict(x), model.eval()(x).log_softmax(1).detach())


def test_a_layer_with_one_value_per_channel_keeps_the_source() -> None:
    model, x = predictor("1d"), images(5, seed=8)
    adapted = make("batch").fit(model, context_of(1, 12))
    torch.testing.assert_close(adapted.predict(x), model.eval()(x).log_softmax(1).detach())


def test_source_is_eval_mode() -> None:
    model, x = predictor(), images(5, seed=8)
    adapted = make("source").fit(model, context_of(3, 3))
    torch.testing.assert_close(adapted.predict(x), model.eval()(x).log_softmax(1).detach())
    assert adapted.state() == {}


def test_weighted_share_0_is_controls_and_the_natural_share_is_the_union() -> None:
    model, context, x = predictor(), context_of(12, 20), images(5, seed=8)
    none = make("union", ratio="weighted", share=0.0).fit(model, context).predict(x)
    torch.testing.assert_close(none, make("controls").fit(model, context).predict(x))
    natural = make("union", ratio="weighted", share=12 / 32).fit(model, context).predict(x)
    torch.testing.assert_close(natural, make("union").fit(model, context).predict(x))
    full = make("union", ratio="weighted", share=1.0).fit(model, context).predict(x)
    torch.testing.assert_close(full, make("batch").fit(model, context).predict(x))


def test_weighted_variance_holds_the_between_group_term() -> None:
    model, context = predictor(), context_of(12, 20)
    layer = first_layer(make("union", ratio="weighted", share=0.25).fit(model, context).model)
    p, c = (moments(first_input(model, x)) for x in (context.perturbed, context.controls))
    expected = 0.25 * p.var + 0.75 * c.var + 0.25 * 0.75 * (p.mean - c.mean) ** 2
    torch.testing.assert_close(layer.running_var, expected)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(2, 40), st.sampled_from([0.2, 1 / 3, 0.5]))
def test_matched_draws_from_the_side_in_excess_only(n_p: int, n_c: int, trained: float) -> None:
    context = context_of(n_p, n_c)
    part = make("union", ratio="matched", trained_ratio=trained).select(context)  # type: ignore[attr-defined]
    kept_p, kept_c = len(part.perturbed), len(part.controls)
    assert kept_p == n_p or kept_c == n_c
    assert 1 <= kept_p <= n_p
    assert 2 <= kept_c <= n_c
    if min(kept_p, kept_c) >= 10:
        assert kept_p / (kept_p + kept_c) == pytest.approx(trained, abs=0.03)
    again = make("union", ratio="matched", trained_ratio=trained).select(context)  # type: ignore[attr-defined]
    assert torch.equal(again.image, part.image)


def test_matched_halves_the_perturbed_of_a_whole_plate() -> None:
    part = make("union", ratio="matched").select(context_of(288, 288))  # type: ignore[attr-defined]
    assert (len(part.perturbed), len(part.controls)) == (144, 288)


@pytest.mark.parametrize("side", ["union", "perturbed", "controls"])
def test_prior_is_the_blend(side: str) -> None:
    model, context = predictor(), context_of(12, 20)
    x = {"union": context.image, "perturbed": context.perturbed, "controls": context.controls}[side]
    m, source = moments(first_input(model, x)), first_layer(model)
    layer = first_layer(make("prior", pseudo_count=8.0, context=side).fit(model, context).model)
    a = len(x) / (8 + len(x))
    mean = (1 - a) * source.running_mean + a * m.mean
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, (1 - a) * source.running_var + a * m.var)


def test_limits_of_prior() -> None:
    model, context, x = predictor(), context_of(12, 20), images(5, seed=8)
    source = make("source").fit(model, context).predict(x)
    torch.testing.assert_close(
        make("prior", pseudo_count=1e12).fit(model, context).predict(x), source
    )
    union = make("union").fit(model, context).predict(x)
    torch.testing.assert_close(make("prior", pseudo_count=0).fit(model, context).predict(x), union)


@pytest.mark.parametrize("name", ["batch", "domain", "controls", "union", "prior"])
def test_a_model_without_batch_norm_is_announced(name: str) -> None:
    with pytest.warns(EvenfieldWarning, match="no BatchNorm"):
        make(name).fit(predictor("groupnorm"), context_of(12, 20))


def test_layers_without_running_statistics_need_a_context() -> None:
    layers = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten())
    model = Predictor(layers, nn.Linear(200, 2))
    with pytest.raises(InputError, match="no running statistics"):
        make("source").fit(model, context_of(4, 4))
    adapted = make("union").fit(model, context_of(4, 4))
    x = images(5, seed=8)
    torch.testing.assert_close(adapted.predict(x[:1]), adapted.predict(x)[:1])
    restored = make("union").restore(model, adapted.state())
    assert torch.equal(restored.predict(x), adapted.predict(x))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("union", {"ratio": "half"}),
        ("union", {"share": 1.5}),
        ("union", {"trained_ratio": 0.0}),
        ("prior", {"context": "all"}),
        ("prior", {"pseudo_count": -1.0}),
        ("tent", {"statistics": "domain"}),
        ("tent", {"steps": -1}),
        ("lame", {"neighbours": -1}),
        ("t3a", {"keep": 0}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, config: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ADAPTERS[name].Config(**config)
