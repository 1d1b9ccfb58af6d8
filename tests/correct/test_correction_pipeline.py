"""Correctors in a row: fitted, saved, applied to a plate that comes later."""

import json
import pickle
import zipfile

import numpy as np
import pytest
from corrector_cases import fake_profiles, of, treated_of

from evenfield.config import from_dict, to_dict
from evenfield.correct import (
    CORRECTORS,
    Pipeline,
    PipelineConfig,
    Step,
    apply,
    fit_pipeline,
    load,
    save,
)
from evenfield.errors import InputError, StorageError

CONFIG = PipelineConfig(
    steps=(
        Step(corrector="standardise", options={"scale": "pooled"}),
        Step(corrector="tvn"),
        Step(corrector="combat", options={"covariates": ["Metadata_CellCount"]}),
    )
)


def test_each_step_is_fitted_on_what_the_one_before_made():
    table = fake_profiles()
    out = fit_pipeline(table, CONFIG).transform(table)
    by_hand = table
    for corrector in (
        CORRECTORS["standardise"](scale="pooled"),
        CORRECTORS["tvn"](),
        CORRECTORS["combat"](covariates=("Metadata_CellCount",)),
    ):
        by_hand = corrector.fit_transform(by_hand)
    np.testing.assert_array_equal(out.features, by_hand.features)
    assert out.names == by_hand.names


def test_fitted_saved_and_applied_to_a_later_plate(tmp_path):
    table = fake_profiles()
    seen, later = of(table, "Metadata_Batch", "b0", "b1"), of(table, "Metadata_Batch", "b2")
    fitted = fit_pipeline(seen, CONFIG)
    save(fitted, tmp_path / "correction.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["correction.npz"]
    again = load(tmp_path / "correction.npz")
    assert isinstance(again, Pipeline)
    expected = fitted.transform(later).features
    np.testing.assert_array_equal(again.transform(later).features, expected)
    np.testing.assert_array_equal(apply(tmp_path / "correction.npz", later).features, expected)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(fitted)).transform(later).features, expected
    )
    assert again.unseen == "rows"  # ComBat looks at the rows of a new batch


def test_the_file_says_what_it_is(tmp_path):
    save(fit_pipeline(fake_profiles(), CONFIG), tmp_path / "c.npz")
    with zipfile.ZipFile(tmp_path / "c.npz") as archive:
        told = json.loads(archive.read("correction.json"))
    assert [step["corrector"] for step in told["steps"]] == ["standardise", "tvn", "combat"]
    assert told["steps"][0]["config"]["scale"] == "pooled"
    assert [step["unseen"] for step in told["steps"]] == ["controls", "controls", "rows"]
    assert told["steps"][0]["num_rows"] == 360
    assert told["steps"][0]["names"] == [f"f{i}" for i in range(6)]


def test_a_rule_that_refuses_refuses_in_the_pipeline_too():
    table = fake_profiles()
    fitted = fit_pipeline(of(table, "Metadata_Batch", "b0", "b1"), CONFIG)
    with pytest.raises(InputError, match="standardise: 2 domain"):
        fitted.transform(treated_of(of(table, "Metadata_Batch", "b2")))


def test_the_configuration_is_json():
    assert from_dict(PipelineConfig, json.loads(json.dumps(to_dict(CONFIG)))) == CONFIG


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((), "no step"),
        ((Step(corrector="tnv"),), "no corrector called 'tnv'"),
        ((Step(corrector="tvn", options={"rigde": 1.0}),), "no setting 'rigde'"),
        ((Step(corrector="tvn", options={"ridge": "much"}),), "ridge is 'much'"),
        ((Step(corrector="sphering", options={"kind": "cholesky"}),), "kind is 'cholesky'"),
        ((Step(corrector="sphering", options={"epsilon": -1.0}),), "epsilon is -1.0"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(steps, message):
    with pytest.raises(InputError, match=message):
        Pipeline.from_config(PipelineConfig(steps=steps))


def test_settings_of_steps_can_be_read_and_changed_and_the_whole_cloned():
    base = pytest.importorskip("sklearn.base")
    pipeline = Pipeline.from_config(CONFIG)
    assert pipeline.get_params()["1__ridge"] == 0.5
    pipeline.set_params(**{"1__ridge": 2.0})
    assert pipeline.steps[1].config.ridge == 2.0
    with pytest.raises(InputError, match="no setting '7__ridge'"):
        pipeline.set_params(**{"7__ridge": 2.0})
    twin = base.clone(pipeline.fit(fake_profiles()))
    assert twin.steps[1].config.ridge == 2.0
    assert not twin.__sklearn_is_fitted__()


def test_what_is_no_saved_correction_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(InputError, match="no saved correction"):
        load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(InputError, match="no saved correction"):
        load(tmp_path / "other.npz")
    save(fit_pipeline(fake_profiles(), CONFIG), tmp_path / "whole.npz")
    cut = (tmp_path / "whole.npz").read_bytes()[:-200]
    (tmp_path / "cut.npz").write_bytes(cut)
    with pytest.raises(InputError, match="no saved correction"):
        load(tmp_path / "cut.npz")


def test_a_file_of_another_format_or_with_a_pickle_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "new.npz", "w") as archive:
        archive.writestr("correction.json", json.dumps({"format": 99, "steps": []}))
    with pytest.raises(InputError, match="format 99, this version reads 1"):
        load(tmp_path / "new.npz")
    header = {"format": 1, "kind": "corrector", "steps": [{"corrector": "tvn"}]}
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("correction.json", json.dumps(header))
        with archive.open("0.mean.npy", "w") as member:
            np.lib.format.write_array(member, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="no saved correction"):
        load(tmp_path / "evil.npz")


def test_nothing_is_left_where_it_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        save(fit_pipeline(fake_profiles(), CONFIG), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
