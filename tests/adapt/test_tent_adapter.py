"""TENT against its equation, its limits, and whether it does its job."""

import copy

import pytest
import torch
from adapter_cases import context_of, images, predictor
from torch import nn

from evenfield.adapt import ADAPTERS
from evenfield.adapt.tent import Tent, affine_parameters, entropy
from evenfield.errors import EvenfieldWarning
from evenfield.nn.norm import batch_norms, normalising, union_rule
from evenfield.nn.predictor import Predictor

KINDS = ["1d", "2d", "3d"]


def tent(**config: object) -> Tent:
    return Tent(Tent.Config(**config))  # type: ignore[arg-type]


def test_entropy_letter_by_letter() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(entropy(logits), -(p * p.log()).sum(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("statistics", ["source", "batch", "controls", "union"])
@pytest.mark.parametrize("limit", [{"learning_rate": 0.0}, {"steps": 0}])
def test_without_steps_it_is_the_adapter_of_its_statistics(
    kind: str, statistics: str, limit: dict[str, float]
) -> None:
    model, context, x = predictor(kind), context_of(12, 20), images(5, seed=8)
    adapted = tent(statistics=statistics, **limit).fit(model, context)
    assert torch.equal(adapted.predict(x), ADAPTERS[statistics]().fit(model, context).predict(x))


def test_one_step_is_adam_on_the_mean_entropy_of_the_perturbed_rows() -> None:
    model, context = predictor(), context_of(12, 20)
    adapted = tent(learning_rate=1e-2).fit(model, context)
    other = copy.deepcopy(model).eval()
    affine = affine_parameters(other)
    with normalising(other, union_rule):  # statistics of all, gradient of the perturbed rows only
        logits = other(context.image)[~context.is_control]
    p = logits.softmax(1)
    loss = -(p * p.log()).sum(1).mean()
    gradients = torch.autograd.grad(loss, affine)
    for before, gradient, after in zip(
        affine, gradients, affine_parameters(adapted.model), strict=True
    ):  # Adam's first step is lr * g / (|g| + eps)
        step = 1e-2 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(after, before - step, atol=2e-4, rtol=0)


@pytest.mark.parametrize("statistics", ["source", "batch", "controls", "union"])
def test_the_entropy_of_the_context_falls(statistics: str) -> None:
    model, context = predictor(), context_of(12, 20)

    def mean_entropy(steps: int) -> float:
        settings = {"steps": steps, "learning_rate": 1e-2, "statistics": statistics}
        return (
            entropy(tent(**settings).fit(model, context).predict(context.perturbed)).mean().item()
        )

    assert mean_entropy(20) < mean_entropy(0) - 0.05


def test_small_batches_cover_the_context_and_are_drawn_by_seed() -> None:
    model, context, x = predictor(), context_of(12, 20), images(5, seed=8)
    first, same, other = (
        tent(batch_size=8, steps=2, seed=seed).fit(model, context).predict(x) for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    batches = list(tent(batch_size=8)._batches(context))
    assert sum(len(b.perturbed) for b in batches) == 12
    assert all(1 <= len(b.image) <= 8 for b in batches)


def test_without_perturbed_images_only_the_statistics_adapt() -> None:
    model, context, x = predictor(), context_of(0, 20), images(5, seed=8)
    with pytest.warns(EvenfieldWarning, match="only the statistics"):
        adapted = tent().fit(model, context)
    assert torch.equal(adapted.predict(x), ADAPTERS["union"]().fit(model, context).predict(x))


@pytest.mark.filterwarnings("ignore::evenfield.errors.EvenfieldWarning")
@pytest.mark.parametrize("statistics", ["batch", "controls", "union"])
def test_one_image_does_not_break_it(statistics: str) -> None:
    for shape in [(1, 0), (1, 1)]:
        adapted = tent(statistics=statistics, steps=3).fit(predictor("1d"), context_of(*shape))
        assert adapted.predict(images(5)).isfinite().all()


def test_group_and_layer_norm_are_affine_layers_too() -> None:
    layers = nn.Sequential(nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Flatten(), nn.LayerNorm(200))
    assert len(affine_parameters(layers)) == 6
    assert (
        affine_parameters(nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.Conv2d(2, 2, 1))) == []
    )


@pytest.mark.filterwarnings("ignore::evenfield.errors.EvenfieldWarning")
def test_a_model_without_affine_layers_is_announced() -> None:
    model = Predictor(nn.Flatten(), nn.Linear(200, 3))
    with pytest.warns(EvenfieldWarning, match="no affine layer"):
        tent(statistics="source").fit(model, context_of(4, 4))


def test_state_holds_affine_and_statistics_only() -> None:
    model = predictor()
    allowed = {
        f"model.{layer}.{leaf}"
        for layer in batch_norms(model)
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert set(tent().fit(model, context_of(12, 20)).state()) <= allowed
