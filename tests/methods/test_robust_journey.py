"""Feature-statistics methods in domain-pure episodes and under adapters: one setting each."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evenfield.adapt import ADAPTERS
from evenfield.config import RunConfig, SplitConfig, TrainConfig
from evenfield.train.run import fit
from evenfield.types import Context

CONFIG = RunConfig(
    split=SplitConfig(test=("b04",), validation=("b03",)),
    train=TrainConfig(num_perturbed=12, num_controls=4, num_domains=2, accumulate=1, epochs=1),
)
ABRA = {"apply_prob": 1.0, "adv_warmup": 0.0}
BETWEEN = {"spread_ref": "ema_between_experiment", "offset_sharing": "shared_per_experiment"}


def trained(screen, out, method, sampler, **options):
    notes = []
    train = replace(CONFIG.train, sampler=sampler)
    config = replace(CONFIG, method=method, options=options, train=train)
    model = fit(screen, config, out, on_progress=notes.append)
    assert all(np.isfinite(list(note.losses.values())).all() for note in notes)
    return model.method, notes


@pytest.mark.parametrize(
    ("method", "options"),
    [("abra", ABRA), ("dsu", {"p": 1.0}), ("mixstyle", {"p": 1.0}), ("efdmix", {"p": 1.0})],
)
def test_domain_pure_episodes_then_the_context_of_a_new_plate(tiny, tmp_path, method, options):
    model, notes = trained(tiny, tmp_path / "run", method, "episodes", **options)
    if method == "abra":
        assert all(note.losses["perturbed"] == 1 for note in notes)
        assert all(note.losses["a_rms"] > 0 for note in notes)
    image = torch.randn(12, len(tiny.channels), 32, 32, generator=torch.Generator().manual_seed(0))
    context = Context(image=2 * image + 1, is_control=torch.arange(12) >= 8)
    before = model.predictor.eval()(image)
    for name in ("context", "union", "controls", "source"):
        log_p = ADAPTERS[name]().fit(model.predictor, context).predict(image)
        assert torch.isfinite(log_p).all()
        unchanged = torch.allclose(log_p, before.log_softmax(1), atol=1e-5)
        assert unchanged == (name == "source")


def test_experiments_share_an_offset_in_batches_of_several(tiny, tmp_path):
    model, notes = trained(tiny, tmp_path / "run", "abra", "domains", **ABRA, **BETWEEN)
    assert model.uncertainties.num_seen > 0
    assert all(note.losses["a_rms"] > 0 for note in notes)


def test_mixing_between_domains_goes_with_the_sampler_of_domains(tiny, tmp_path):
    trained(tiny, tmp_path / "run", "mixstyle", "domains", p=1.0, partner="other-domain")


def test_a_stopped_run_goes_on_with_its_running_spread_and_intensities(tiny, tmp_path):
    options = {**ABRA, "spread_ref": "ema", "adversary": "hybrid", "inner_bn": "dual"}
    whole, _ = trained(tiny, tmp_path / "whole", "abra", "shuffled", **options)
    steps = []

    class Killed(Exception):
        pass

    def kill(note):
        steps.append(note.step)
        if len(steps) == 4:
            raise Killed

    config = replace(
        CONFIG,
        method="abra",
        options=options,
        train=replace(CONFIG.train, sampler="shuffled", checkpoint_seconds=0.0),
    )
    with pytest.raises(Killed):
        fit(tiny, config, tmp_path / "cut", on_progress=kill)
    resumed = fit(tiny, config, tmp_path / "cut").method
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
