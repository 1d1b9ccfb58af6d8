"""Embeddings of a run: what is written, that a killed call goes on, that nothing leaks."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from evenfield import api
from evenfield.cli import run
from evenfield.config import SplitConfig, TrainConfig
from evenfield.data.profiles import read_profiles
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.profile import embed as embedding
from evenfield.profile.aggregate import aggregate
from evenfield.profile.made_by import identifier_of, made_by
from evenfield.profile.plates import make_adapter, reader_for
from evenfield.train.checkpoint import open_model


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "cs"
    split = SplitConfig(test=("b04",), select_on="wells")
    train = TrainConfig(num_perturbed=8, num_controls=4, accumulate=2, epochs=1)
    return api.train("cs-arm-bn", tiny.folder, out, split=split, train=train)


@pytest.fixture(scope="module")
def native(tiny, trained, tmp_path_factory):
    """Adapted embeddings of the tiny screen."""
    out = tmp_path_factory.mktemp("embedded") / "native.parquet"
    return api.embed(trained, tiny.folder, out, adapter="native")


def test_every_image_is_there_with_its_metadata_first(tiny, native):
    table = pd.read_parquet(native)
    assert len(table) == tiny.num_images
    told = [c for c in tiny.manifest if c.startswith("Metadata_")]
    assert list(table.columns[: len(told)]) == told
    features = list(table.columns[len(told) :])
    assert features == [f"cs-arm-bn_{i}" for i in range(len(features))]
    assert {table[c].dtype for c in features} == {np.dtype("float32")}
    assert "negcon" in set(table["Metadata_ControlType"])
    key = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    left = table[told].sort_values(key).reset_index(drop=True)
    right = tiny.manifest[told].sort_values(key).reset_index(drop=True)
    pd.testing.assert_frame_equal(left, right)


def test_features_are_those_of_the_adapted_model(tiny, trained, native):
    model = open_model(trained)
    reader = reader_for(model, tiny)
    found = read_profiles(native)
    plate = tiny.manifest["Metadata_Plate"] == "b02-p1"
    is_control = (tiny.manifest["Metadata_ControlType"] == "negcon").to_numpy()
    rows = np.flatnonzero(plate)
    own = (found.metadata["Metadata_Plate"] == "b02-p1").to_numpy()
    from evenfield.data.sampler import ContextRows

    context = reader.context(
        ContextRows(
            name="b02-p1", perturbed=rows[~is_control[rows]], controls=rows[is_control[rows]]
        )
    )
    adapted = make_adapter(model.method.native).fit(model.method.predictor, context)
    with torch.no_grad():
        expected = adapted.model.features(reader.images(rows)).numpy()
    np.testing.assert_allclose(found.features[own], expected, atol=1e-5)


def test_wells_and_treatments_are_aggregates_of_the_images(tiny, trained, native, tmp_path):
    images = read_profiles(native)
    for level in ("well", "treatment"):
        out = api.embed(
            trained, tiny.folder, tmp_path / f"{level}.parquet", adapter="native", level=level,
            function="median",
        )  # fmt: skip
        found = read_profiles(out)
        expected = aggregate(images, level, function="median")
        np.testing.assert_allclose(found.features, expected.features, atol=1e-5)
        assert list(found.metadata["Metadata_Count"]) == list(expected.metadata["Metadata_Count"])
        assert "Metadata_Site" not in found.metadata


def test_a_killed_call_goes_on_and_gives_the_same_bytes(tiny, trained, tmp_path, monkeypatch):
    whole = api.embed(trained, tiny.folder, tmp_path / "whole.parquet")
    out = tmp_path / "again.parquet"
    done = []
    genuine = embedding._plate

    def dies(model, reader, context, *more):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(context.name)
        return genuine(model, reader, context, *more)

    monkeypatch.setattr(embedding, "_plate", dies)
    with pytest.raises(KeyboardInterrupt):
        api.embed(trained, tiny.folder, out)
    assert not out.exists()
    assert len(list((tmp_path / "again.parquet.plates").glob("*.parquet"))) == 3
    later = []
    monkeypatch.setattr(embedding, "_plate", lambda *a: (later.append(a[2].name), genuine(*a))[1])
    api.embed(trained, tiny.folder, out)
    assert len(later) == 5
    assert not set(later) & set(done)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.parquet", "whole.parquet"]


def test_plates_of_another_setting_are_made_anew(tiny, trained, tmp_path):
    folder = tmp_path / "p.parquet.plates"
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps({"model": "another"}))
    (folder / "0.parquet").write_text("of another model")
    with pytest.warns(EvenfieldWarning, match="made anew"):
        api.embed(trained, tiny.folder, tmp_path / "p.parquet")
    other = tmp_path / "q.parquet.plates"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds something else"):
        api.embed(trained, tiny.folder, tmp_path / "q.parquet")
    assert (other / "thesis.txt").exists()


def test_what_cannot_be_written_is_refused_at_once(tiny, trained, native, tmp_path):
    with pytest.raises(InputError, match="exists"):
        api.embed(trained, tiny.folder, native)
    with pytest.raises(InputError, match=r"end it in \.parquet"):
        api.embed(trained, tiny.folder, tmp_path / "p.csv")
    with pytest.raises(InputError, match="no adapter called"):
        api.embed(trained, tiny.folder, tmp_path / "p.parquet", adapter="magic")


def test_the_verbs_make_a_table_correct_it_and_hand_it_on(tiny, trained, native, tmp_path, capsys):
    wells, fitted = tmp_path / "wells.parquet", tmp_path / "fitted.npz"
    arguments = [str(trained), str(tiny.folder), str(wells), "--level", "well", "--adapter"]
    assert run(["embed", *arguments, "native", "-q"]) == 0
    assert made_by(wells)["adapter"] == "union"
    assert run(["correct", "fit", str(wells), str(fitted), "--steps", "standardise, tvn"]) == 0
    assert "standardise -> tvn" in capsys.readouterr().out
    corrected = tmp_path / "corrected.parquet"
    assert run(["correct", "apply", str(fitted), str(wells), str(corrected), "-q"]) == 0
    assert len(read_profiles(corrected)) == len(read_profiles(wells))
    assert run(["export", str(corrected), str(tmp_path / "t.h5ad"), "--level", "treatment"]) == 0
    assert run(["export", str(wells), str(tmp_path / "p.csv.gz")]) == 0
    assert "pycytominer: features=[" in capsys.readouterr().out
    assert run(["export", str(wells), str(tmp_path / "gallery"), "--format", "gallery"]) == 0
    folder = tmp_path / "gallery/workspace_dl/profiles" / str(identifier_of(wells))
    assert len(list(folder.glob("*/*/*.parquet"))) == 8
    assert run(["correct", "fit", str(wells), str(fitted), "--steps", "tvn"]) == 2  # is there
    assert run(["correct", "fit", str(wells), str(tmp_path / "n.npz")]) == 2  # no step
    assert run(["correct", "fit", str(wells), str(tmp_path / "n.npz"), "--steps", "tnv"]) == 2
    assert "there is no corrector called 'tnv'" in capsys.readouterr().err
    assert run(["correct"]) == 2
    assert run(["correct", "--help"]) == 0


def test_a_correction_of_a_file_of_settings_is_applied_to_a_later_plate(native, tmp_path):
    profiles = read_profiles(native)
    late = (profiles.metadata["Metadata_Batch"] == "b04").to_numpy()
    config = tmp_path / "steps.json"
    config.write_text(json.dumps({"steps": [{"corrector": "mad-robustize"}]}))
    fitted = api.fit_correction(profiles[~late], tmp_path / "c.npz", config=config)
    found = api.correct(tmp_path / "c.npz", profiles[late])
    np.testing.assert_array_equal(found.features, fitted.transform(profiles[late]).features)
    assert len(found) == late.sum()
    with pytest.raises(InputError, match="either --steps or --config"):
        api.fit_correction(profiles, tmp_path / "d.npz", steps=["tvn"], config=config)


def test_adapted_states_are_used_as_they_are(tiny, trained, native, tmp_path):
    """States of `adapt` give what adapting now gives; those of another model are refused."""
    states = api.adapt(trained, tiny.folder, tmp_path / "states", adapter="native")
    model = open_model(trained / "best.pt")
    out = tmp_path / "a.parquet"
    about = embedding.embed(model, tiny, out, adapted=states)
    one, two = read_profiles(out), read_profiles(native)
    np.testing.assert_array_equal(one.features, two.features)
    assert one.metadata.equals(two.metadata)
    assert about["states"]
    index = json.loads((states / "adapted.json").read_text())
    assert index["adapter"] == about["adapter"] != "source"
    (states / "adapted.json").write_text(json.dumps({**index, "model": "another"}))
    with pytest.raises(InputError, match="another model"):
        embedding.embed(model, tiny, tmp_path / "b.parquet", adapted=states)
    with pytest.raises(InputError, match="no adapted states"):
        embedding.embed(model, tiny, tmp_path / "b.parquet", adapted=tmp_path)
    lacking = {**index, "plates": dict(list(index["plates"].items())[1:])}
    (states / "adapted.json").write_text(json.dumps(lacking))
    with pytest.raises(InputError, match="no state of plate"):
        embedding.embed(model, tiny, tmp_path / "b.parquet", adapted=states)
    stream = {**lacking, "online": {}}  # a stream has followed some of the plates
    (states / "adapted.json").write_text(json.dumps(stream))
    embedding.embed(model, tiny, tmp_path / "c.parquet", adapted=states)
    followed = read_profiles(tmp_path / "c.parquet").metadata["Metadata_Plate"]
    assert set(followed) == set(lacking["plates"])
