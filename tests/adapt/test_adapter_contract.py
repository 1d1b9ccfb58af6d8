"""What every adapter of the registry promises."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapter_cases import K, context_of, images, predictor

from evenfield.adapt import ADAPTERS, Adapted
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.nn.norm import batch_norms
from evenfield.nn.predictor import Predictor
from evenfield.types import Context

AFFINE_TOO = {"tent"}


@pytest.fixture(params=["1d", "2d", "3d"])
def model(request: pytest.FixtureRequest) -> Predictor:
    return predictor(request.param)


@pytest.fixture(params=list(ADAPTERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def fit(name: str, model: Predictor, context: Context) -> Adapted:
    """Fit; a fallback may be announced, nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvenfieldWarning)
        return ADAPTERS[name]().fit(model, context)


def contexts() -> Iterator[tuple[str, Context]]:
    for num_perturbed, num_controls in [
        (12, 20),
        (1, 20),
        (12, 0),
        (0, 20),
        (1, 0),
        (0, 1),
        (0, 0),
    ]:
        yield f"{num_perturbed}p{num_controls}c", context_of(num_perturbed, num_controls)


@pytest.mark.parametrize(("kind", "context"), list(contexts()), ids=[k for k, _ in contexts()])
def test_any_context_gives_log_probabilities(
    name: str, model: Predictor, kind: str, context: Context
) -> None:
    log_p = fit(name, model, context).predict(images(5, seed=9))
    assert log_p.shape == (5, K)
    assert log_p.dtype == torch.float32
    assert not log_p.is_inference()
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(5))


def test_the_source_stays_bit_for_bit_and_reset_gives_it_back(name: str, model: Predictor) -> None:
    before, mode = copy.deepcopy(model.state_dict()), model.training
    x = images(4, seed=3)
    source = copy.deepcopy(model).eval()(x)
    adapted = fit(name, model, context_of(12, 20))
    adapted.predict(x)
    assert model.training == mode
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert adapted.reset() is model
    assert torch.equal(adapted.reset().eval()(x), source)


def test_only_declared_parameters_change(name: str, model: Predictor) -> None:
    adapted = fit(name, model, context_of(12, 20))
    affine = {f"{layer}.{leaf}" for layer in batch_norms(model) for leaf in ("weight", "bias")}
    for key, value in adapted.model.named_parameters():
        if not (name in AFFINE_TOO and key in affine):
            assert torch.equal(value, dict(model.named_parameters())[key]), key


def test_the_same_context_gives_the_same_bits(name: str, model: Predictor) -> None:
    x = images(6, seed=4)
    first, second = (fit(name, model, context_of(12, 20)).predict(x) for _ in range(2))
    assert torch.equal(first, second)


def test_the_global_random_state_is_not_touched(name: str) -> None:
    before = torch.random.get_rng_state()
    fit(name, predictor(), context_of(12, 20))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_prediction_does_not_depend_on_its_companions(name: str, model: Predictor) -> None:
    adapted = fit(name, model, context_of(12, 20))
    x = images(9, seed=4)
    whole = adapted.predict(x)
    torch.testing.assert_close(torch.cat([adapted.predict(row[None]) for row in x]), whole)
    torch.testing.assert_close(adapted.predict(x.flip(0)).flip(0), whole)
    torch.testing.assert_close(adapted.predict(torch.cat([x, 50 + x]))[:9], whole)


def test_the_order_of_the_context_does_not_matter(name: str, model: Predictor) -> None:
    context = context_of(12, 20)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    other = Context(image=context.image[order], is_control=context.is_control[order])
    x = images(4, seed=4)
    torch.testing.assert_close(
        fit(name, model, other).predict(x), fit(name, model, context).predict(x), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("rule", [n for n in ADAPTERS if not ADAPTERS[n].uses_controls])
def test_rules_that_do_not_use_controls_ignore_them(rule: str, model: Predictor) -> None:
    context = context_of(12, 20)
    image = context.image.clone()
    image[context.is_control] = 77.0
    other = Context(image=image, is_control=context.is_control)
    x = images(4, seed=4)
    assert torch.equal(fit(rule, model, other).predict(x), fit(rule, model, context).predict(x))


@pytest.mark.parametrize("shape", [(12, 20), (12, 0), (0, 20)])
def test_state_round_trip_without_pickle(
    name: str, model: Predictor, shape: tuple[int, int], tmp_path: Path
) -> None:
    adapted = fit(name, model, context_of(*shape))
    torch.save(adapted.state(), tmp_path / "plate.pt")
    state = torch.load(tmp_path / "plate.pt", weights_only=True)
    restored = ADAPTERS[name]().restore(model, state)
    x = images(7, seed=4)
    assert torch.equal(restored.predict(x), adapted.predict(x))
    assert restored.reset() is model
    assert not any(key.startswith("model.backbone.0") for key in state)  # no convolution in it


def test_a_foreign_state_is_refused(name: str) -> None:
    model = predictor()
    for state in (
        {"model.backbone.77.running_mean": torch.zeros(6)},
        {"model.backbone.1.running_mean": torch.zeros(99)},
        {"weights": torch.zeros(2)},
    ):
        with pytest.raises(InputError, match="no place"):
            ADAPTERS[name]().restore(model, state)


def test_it_works_inside_inference_mode_and_the_result_can_be_trained(name: str) -> None:
    model = predictor()
    with torch.inference_mode():
        adapted = fit(name, model, context_of(12, 20))
    adapted.model(images(3)).sum().backward()
    assert adapted.model.head.bias.grad is not None


def test_models_without_batch_norm_are_handled(name: str) -> None:
    log_p = fit(name, predictor("groupnorm"), context_of(12, 20)).predict(images(3))
    assert log_p.isfinite().all()


def test_wrong_flags_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="control flags"):
        ADAPTERS[name]().fit(
            predictor(), Context(image=images(4), is_control=torch.zeros(3, dtype=torch.bool))
        )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_pixels_that_are_not_numbers_are_named(name: str, value: float) -> None:
    context = context_of(4, 4)
    context.image[2, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"1 image.* of plate P1 .* numbers \[2\]"):
        ADAPTERS[name]().fit(predictor(), context)
