"""Which sampler feeds which method; every sampler trains `erm` for two steps."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from evenfield.config import RunConfig, SplitConfig, TrainConfig
from evenfield.data.groups import Domains, Pure
from evenfield.data.sampler import Episodes, Shuffled
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.train.run import fit
from evenfield.train.setup import prepare_run, sampler_for

CONFIG = RunConfig(
    split=SplitConfig(test=("b04",), validation=("b03",)),
    train=TrainConfig(num_perturbed=12, num_controls=4, num_domains=2, accumulate=1, epochs=1),
)


def sampler_of(screen, method="erm", options=None, **settings):
    config = replace(
        CONFIG,
        method=method,
        options=options or {},
        train=replace(CONFIG.train, **settings),
    )
    setup = prepare_run(screen, config, screen.roles)
    return sampler_for(setup, config.train), setup


@pytest.mark.parametrize(
    ("method", "kind"),
    [("erm", Shuffled), ("arm-bn", Episodes), ("cs-arm-bn", Episodes), ("coral", Domains)],
)
def test_auto_takes_what_the_method_needs(tiny, method, kind):
    sampler, setup = sampler_of(tiny, method)
    assert type(sampler) is kind
    for rows in (sampler.rows(step) for step in range(5)):
        contexts = len(np.unique(setup.coded.context[rows]))
        domains = len(np.unique(setup.coded.domain[rows]))
        controls = setup.coded.is_control[rows].sum()
        assert (contexts == 1) == setup.method.needs.one_context
        assert domains >= setup.method.needs.domains
        assert (controls > 0) == setup.method.needs.controls


def test_fish_gets_batches_of_several_domains(tiny):
    assert type(sampler_of(tiny, meta_lr=0.5)[0]) is Domains


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        ("shuffled", {}),
        ("shuffled", {"pure": "Metadata_Batch"}),
        ("episodes", {}),
        ("domains", {}),
        ("domains", {"distinct_domains": False}),
        ("domains", {"pure": "Metadata_Label"}),
        ("chunks", {"chunk": 3}),
    ],
)
def test_each_sampler_trains_erm_for_two_steps(tiny, tmp_path, sampler, settings):
    train = replace(CONFIG.train, sampler=sampler, **settings)
    steps = []

    class Enough(Exception):
        pass

    def two(note):
        steps.append(note.losses["risk"])
        if len(steps) == 2:
            raise Enough

    with pytest.raises(Enough):
        fit(tiny, replace(CONFIG, train=train), tmp_path / "run", on_progress=two)
    assert np.isfinite(steps).all()


def test_pure_batches_hold_one_value_of_the_column(tiny):
    for column, name, kind in [
        ("Metadata_Well", "shuffled", Pure),
        ("Metadata_Label", "domains", Pure),
        ("Metadata_Plate", "chunks", Pure),
    ]:
        sampler, setup = sampler_of(tiny, sampler=name, pure=column, num_perturbed=4, chunk=2)
        assert type(sampler) is kind
        values = setup.screen.manifest[column].to_numpy()
        seen = [set(values[sampler.rows(step)]) for step in range(sampler.passes_per_epoch)]
        assert all(len(one) == 1 for one in seen)
        assert set().union(*seen) == set(values[setup.split.train])


def test_episodes_of_a_method_that_asks_for_no_controls_have_none(tiny):
    sampler, setup = sampler_of(tiny, sampler="episodes")
    for rows in islice(map(sampler.rows, range(9)), 9):
        assert len(rows) == 12
        assert not setup.coded.is_control[rows].any()
        assert len(set(setup.coded.context[rows])) == 1


def test_a_plate_without_controls_is_an_error_or_trains_without(tiny):
    _, setup = sampler_of(tiny, "cs-arm-bn")
    bare = setup.coded.context == setup.coded.context[setup.split.train[0]]
    # Copied, not written into: pandas hands out read-only arrays once any library asks it to
    # copy on write.
    coded = replace(setup.coded, is_control=setup.coded.is_control & ~bare)
    setup = replace(setup, coded=coded)
    train = replace(CONFIG.train, sampler="episodes")
    with pytest.raises(InputError, match=r"give --train\.missing-controls without"):
        sampler_for(setup, train)
    with pytest.warns(EvenfieldWarning, match="train without them"):
        sampler = sampler_for(setup, replace(train, missing_controls="without"))
    assert {len(sampler.rows(step)) for step in range(20)} == {12, 16}


def test_what_does_not_fit_together_is_named(tiny):
    for match, method, settings in [
        ("arm-bn needs batches of the images of one context", "arm-bn", {"sampler": "shuffled"}),
        ("'chunks' does not draw", "cs-arm-bn", {"sampler": "chunks"}),
        ("no column 'Metadata_Nothing'", "erm", {"pure": "Metadata_Nothing"}),
        ("and episodes cannot go together", "arm-bn", {"pure": "Metadata_Plate"}),
        ("cannot hold 20 domains", "erm", {"sampler": "domains", "distinct_domains": False}),
    ]:
        if "20 domains" in match:
            settings["num_domains"] = 20
        with pytest.raises(InputError, match=match):
            sampler_of(tiny, method, **settings)


def test_a_method_that_compares_domains_needs_them(tiny):
    one = replace(
        CONFIG, method="coral", split=SplitConfig(test=("b03", "b04"), validation=("b02",))
    )
    setup = prepare_run(tiny, one, tiny.roles)
    with pytest.raises(InputError, match=r"coral compares 2 domains or more; .* hold 1"):
        sampler_for(setup, one.train)
    with pytest.warns(EvenfieldWarning, match="nothing is compared"):
        sampler_of(tiny, "coral", sampler="episodes")
    with pytest.warns(EvenfieldWarning, match="holds 2 domains, not 4: the training images"):
        sampler_of(tiny, "coral", num_domains=4)
