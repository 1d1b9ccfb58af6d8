import json
from pathlib import Path

import pytest

from evenfield.bench.grid import GridConfig
from evenfield.bench.presets import PRESETS
from evenfield.config import (
    RunConfig,
    TrainConfig,
    View,
    config_hash,
    from_dict,
    load_config,
    to_dict,
)
from evenfield.errors import InputError
from evenfield.methods import METHODS


def test_a_configuration_survives_json():
    config = RunConfig(
        method="cs-arm-bn",
        options={"context_train": "controls"},
        view=View(crop=48, jitter=0.1),
        train=TrainConfig(weights=Path("w.pth"), lr=0.01),
    )
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_survives_json_and_has_a_stable_hash(name, tmp_path):
    grid = PRESETS[name]()
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(to_dict(grid)))
    again = load_config(GridConfig, path)
    assert again == grid
    assert config_hash(again) == config_hash(grid)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methd": "erm"}, "no setting 'methd'"),
        ({"train": {"lr": "fast"}}, r"train\.lr is 'fast'"),
        ({"train": {"epochs": True}}, r"train\.epochs is True"),
        ({"train": {"precision": "fp8"}}, r"precision is 'fp8'"),
        ({"view": {"normalise": "none"}}, "normalise is 'none'"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(InputError, match=message):
        from_dict(RunConfig, values)


def test_a_missing_setting_is_named():
    with pytest.raises(InputError, match="lacks 'arms'"):
        from_dict(GridConfig, {})


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        load_config(RunConfig, tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        load_config(RunConfig, tmp_path / "bad.json")


def test_nested_options_come_as_text():
    """A setting of a setting is one word on the command line."""
    config = METHODS["abra"].Config
    made = from_dict(config, {"stages": "stem,1", "floor": "None"})
    assert (made.stages, made.floor) == (("stem", "1"), None)
    assert from_dict(config, {"stages": "stem 2"}).stages == ("stem", "2")
    assert from_dict(RunConfig, {"train": {"device": "none"}}).train.device == "none"


def test_whole_numbers_are_floats_where_floats_are_meant():
    assert from_dict(RunConfig, {"train": {"lr": 1}}).train.lr == 1.0
