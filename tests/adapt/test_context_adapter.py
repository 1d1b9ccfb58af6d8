"""Our own adapter: the limits of its weights, and that it is safe where the others break."""

import pytest
import torch
from torch import nn

from evenfield.adapt import ADAPTERS
from evenfield.adapt.context import combined, distance
from evenfield.nn.norm import batch_norms
from evenfield.nn.predictor import Predictor
from evenfield.types import Context

CHANNELS = 6


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        predictor = Predictor(
            nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(CHANNELS, 3),
        ).eval()
    name, layer = next(iter(batch_norms(predictor).items()))
    layer.running_var.fill_(0.56)  # that of `images`
    zeros = torch.zeros(CHANNELS)
    mixed = torch.full((CHANNELS,), 0.894)  # ln(1.37 / 0.56): a mixture of classes varies more
    predictor.calibration = {
        name: {
            **{f"{pair}_{moment}": zeros for pair in ("cT", "pT", "cP") for moment in "mv"},
            "cP_v": mixed,
            "pT_v": -mixed,
            **{f"tau_{pair}": torch.tensor(1e-4) for pair in ("cT", "pT", "cP")},
            "noise_c": torch.tensor(0.75),  # 0.4 / 0.56 and a little for the variance
            "noise_p": torch.tensor(0.75),
            "class": torch.tensor(1.5),
            "noise_p_mean": torch.tensor(0.714),  # 0.4 / 0.56
            "class_mean": torch.tensor(1.446),  # 0.9^2 / 0.56
        }
    }
    return predictor


def images(n, *, mean=0.0, class_sd=0.0, seed=0):
    """(n, c, 6, 6) with image means of variance class_sd^2 + 0.4 around a mean; pixels sum to 1."""
    g = torch.Generator().manual_seed(seed)
    own = torch.randn(n, CHANNELS, 1, 1, generator=g) * 0.4**0.5
    kind = torch.randn(n, CHANNELS, 1, 1, generator=g) * class_sd
    return mean + own + kind + torch.randn(n, CHANNELS, 6, 6, generator=g) * 0.4


def fitted_mean(model, perturbed, controls, **settings):
    context = Context(
        image=torch.cat([perturbed, controls]),
        is_control=torch.arange(len(perturbed) + len(controls)) >= len(perturbed),
    )
    cls = ADAPTERS["context"]
    adapted = cls(cls.Config(**settings)).fit(model, context)
    return next(iter(batch_norms(adapted.model).values())).running_mean


def test_with_many_of_both_it_lands_on_the_plate(model):
    mean = fitted_mean(model, images(400, mean=5, class_sd=0.9), images(400, mean=5, seed=1))
    torch.testing.assert_close(mean, torch.full((CHANNELS,), 5.0), atol=0.15, rtol=0)


def test_a_plate_like_the_training_stays_nearer_the_source(model):
    """Few noisy controls, and nothing that speaks against the source: less error than theirs."""
    ours = sum(fitted_mean(model, images(0), images(3, seed=s)).square().mean() for s in range(20))
    theirs = sum(images(3, seed=s).mean((0, 2, 3)).square().mean() for s in range(20))
    assert ours < 0.8 * theirs


def test_one_class_far_from_the_controls_is_not_believed(model):
    """64 images of one class against 8 controls: the union would follow the class."""
    perturbed, controls = images(64, mean=7), images(8, mean=5, seed=3)
    mean = fitted_mean(model, perturbed, controls)
    union = torch.cat([perturbed, controls]).mean((0, 2, 3))
    assert (mean - 5).abs().mean() < 0.35 * (union - 5).abs().mean()


def test_many_balanced_images_help_few_controls(model):
    """Error against the truth, over draws: smaller than that of the controls alone."""
    errors = {"context": 0.0, "controls": 0.0}
    for seed in range(20):
        perturbed = images(64, mean=5, class_sd=0.9, seed=seed)
        controls = images(4, mean=5, seed=100 + seed)
        mean = fitted_mean(model, perturbed, controls)
        errors["context"] += float((mean - 5).square().mean())
        errors["controls"] += float((controls.mean((0, 2, 3)) - 5).square().mean())
    assert errors["context"] < 0.7 * errors["controls"]


def test_without_controls_a_collapsed_spread_pulls_towards_the_source(model):
    """One class alone spreads little: its images are trusted less than a mixture at their place."""
    mixed = fitted_mean(model, images(64, mean=1.0, class_sd=0.9), images(0))
    single = fitted_mean(model, images(64, mean=1.0), images(0))
    assert single.mean() < mixed.mean()


def test_caution_lowers_the_weight_of_suspect_images(model):
    perturbed, controls = images(64, mean=6.5), images(8, mean=5, seed=3)
    gaps = [
        float((fitted_mean(model, perturbed, controls, caution=c) - 5).abs().mean())
        for c in (1.0, 4.0, 100.0)
    ]
    assert gaps[0] > gaps[1] > gaps[2]


def test_a_model_without_calibration_keeps_the_source(model):
    model.calibration = {}
    mean = fitted_mean(model, images(8, mean=5), images(8, mean=5))
    torch.testing.assert_close(mean, torch.zeros(CHANNELS))


def test_the_combination_has_the_least_error():
    one, two = torch.zeros(2), torch.ones(2)
    (mean, var), error = combined(
        [((one, two), torch.tensor(0.1)), ((two, two), torch.tensor(0.3))]
    )
    torch.testing.assert_close(mean, torch.full((2,), 0.25))
    torch.testing.assert_close(var, two)
    assert float(error) == pytest.approx(1 / (1 / 0.1 + 1 / 0.3))


def test_distance_is_zero_at_itself_and_blind_to_a_common_gain():
    mean, var = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    other = (mean + 0.3, var * 2)
    assert distance((mean, var), (mean, var)) == 0
    torch.testing.assert_close(
        distance(other, (mean, var)),
        distance((other[0] * 5, other[1] * 25), (mean * 5, var * 25)),
    )
