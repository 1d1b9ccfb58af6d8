"""Journeys: what a user does, from plates to a report, on a tiny simulated screen."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from evenfield import api, records
from evenfield.bench.evaluate import predict_contexts
from evenfield.bench.grid import AdapterChoice, Arm, GridConfig, run_grid
from evenfield.cli import run
from evenfield.config import Regime, SplitConfig, TrainConfig
from evenfield.data.store import Screen, ScreenWriter
from evenfield.errors import InputError

TRAIN = TrainConfig(num_perturbed=8, num_controls=4, accumulate=2, epochs=2)
SPLIT = SplitConfig(test=("b04",), select_on="wells")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "cs"
    return api.train("cs-arm-bn", tiny.folder, out, split=SPLIT, train=TRAIN)


def copy_screen(screen, folder, *, keep=None, change=None, channels=None):
    """A screen with some rows, a changed manifest, or other channel names."""
    keep = np.arange(screen.num_images) if keep is None else keep
    manifest = screen.manifest.iloc[keep].reset_index(drop=True)
    if change is not None:
        manifest = change(manifest)
    with ScreenWriter(
        folder,
        manifest,
        channels=channels or screen.channels,
        shape=screen.shape,
        dtype=screen.dtype,
        provenance={"copy": True},
    ) as writer:
        writer.write(range(len(keep)), np.asarray(screen.pixels)[keep])
    return Screen.open(folder)


def test_predict_writes_what_is_promised(tiny, trained, tmp_path):
    table = api.predict(trained, tiny.folder, tmp_path / "p.parquet")
    again = pd.read_parquet(tmp_path / "p.parquet")
    pd.testing.assert_frame_equal(table, again)
    perturbed = ~tiny.manifest["Metadata_ControlType"].isin(["negcon", "empty"])
    assert len(table) == perturbed.sum()
    classes = sorted({x for x in tiny.manifest["Metadata_Label"].dropna() if x})
    probability = table[[f"Prediction_Probability_{name}" for name in classes]].to_numpy()
    np.testing.assert_allclose(probability.sum(1), 1, atol=1e-5)
    assert (table["Prediction_Label"] == np.array(classes)[probability.argmax(1)]).all()
    assert table["Prediction_Uncertainty"].between(0, 1).all()
    assert (table["Prediction_PlateShift"] > 0).all()
    assert [c for c in table if c.startswith("Metadata_")] == [
        c for c in tiny.manifest if c.startswith("Metadata_")
    ]
    with pytest.raises(InputError, match="exists"):
        api.predict(trained, tiny.folder, tmp_path / "p.parquet")


def test_adapt_once_then_predict_equals_predicting_at_once(tiny, trained, tmp_path):
    states = api.adapt(trained, tiny.folder, tmp_path / "states")
    one = api.predict(trained, tiny.folder, tmp_path / "a.parquet", adapted=states)
    two = api.predict(trained, tiny.folder, tmp_path / "b.parquet")
    pd.testing.assert_frame_equal(one, two, check_exact=False, atol=1e-5)
    before = {path.name: path.stat().st_mtime_ns for path in states.glob("*.pt")}
    api.adapt(trained, tiny.folder, states)  # finished plates are skipped
    assert {path.name: path.stat().st_mtime_ns for path in states.glob("*.pt")} == before
    with pytest.raises(InputError, match="another model, screen or adapter"):
        api.adapt(trained, tiny.folder, states, adapter="controls")


def test_wells_are_mean_probabilities(tiny, trained, tmp_path):
    image = api.predict(trained, tiny.folder, tmp_path / "i.parquet")
    well = api.predict(trained, tiny.folder, tmp_path / "w.parquet", level="well")
    key = ["Metadata_Source", "Metadata_Plate", "Metadata_Well"]
    columns = [c for c in image if c.startswith("Prediction_Probability_")]
    expected = image.groupby(key)[columns].mean()
    got = well.set_index(key)[columns].loc[expected.index]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_labels_of_new_plates_are_not_read(tiny, trained, tmp_path):
    def scramble(manifest):
        return manifest.assign(Metadata_Label="", Metadata_Treatment="unknown")

    blind = copy_screen(tiny, tmp_path / "blind", change=scramble)
    one = api.predict(trained, tiny.folder, tmp_path / "1.parquet")
    two = api.predict(trained, blind.folder, tmp_path / "2.parquet")
    columns = [c for c in one if c.startswith("Prediction_")]
    pd.testing.assert_frame_equal(one[columns], two[columns])


def test_test_batches_do_not_touch_the_training(tiny, tmp_path):
    """Other pixels and labels in the held-out batch give the same weights, bit for bit."""
    held_out = (tiny.manifest["Metadata_Batch"] == "b04").to_numpy()

    def other_labels(manifest):
        label = manifest["Metadata_Label"].copy()
        label[held_out & (label.fillna("") != "")] = label[label.fillna("") != ""].iloc[0]
        return manifest.assign(Metadata_Label=label)

    changed = copy_screen(tiny, tmp_path / "changed", change=other_labels)
    weights = []
    for screen, name in ((tiny, "a"), (changed, "b")):
        out = api.train("cs-arm-bn", screen.folder, tmp_path / name, split=SPLIT, train=TRAIN)
        weights.append(torch.load(out / "best.pt", weights_only=True)["method"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_other_channels_are_refused(tiny, trained, tmp_path):
    other = copy_screen(tiny, tmp_path / "other", channels=("a", "b", "c", "d", "e"))
    with pytest.raises(
        InputError, match="has the channels a, b, c, d, e; the model was trained on"
    ):
        api.predict(trained, other.folder, tmp_path / "p.parquet")


def test_a_plate_without_controls_is_predicted_with_a_warning(tiny, trained, tmp_path):
    first = tiny.manifest["Metadata_Plate"].iloc[0]
    bare = (tiny.manifest["Metadata_Plate"] == first) & (
        tiny.manifest["Metadata_ControlType"] == "negcon"
    )
    screen = copy_screen(tiny, tmp_path / "bare", keep=np.flatnonzero(~bare.to_numpy()))
    findings = api.audit(screen.folder)
    assert any(first in item.units or first in item.message for item in findings)
    with pytest.warns(UserWarning, match=f"plate {first}"):
        table = api.predict(trained, screen.folder, tmp_path / "p.parquet")
    of_first = table[table["Metadata_Plate"] == first]
    assert len(of_first)
    assert of_first["Prediction_PlateShift"].isna().all()


def test_evaluate_judges_only_what_was_held_out(tiny, trained, tmp_path):
    rows = api.evaluate(trained, tiny.folder, tmp_path / "e", adapters=("source", "union"))
    assert {row.protocol for row in rows} == {"in-domain", "new-batch"}
    units = {r.unit for r in records.read(tmp_path / "e") if r.protocol == "new-batch"}
    assert "b04" in units
    assert not units & {"b01", "b02", "b03"}


def small_grid(**settings):
    arms = tuple(
        Arm(
            label=name,
            method=name,
            train=TRAIN,
            adapters=(
                AdapterChoice(name="source", pictures=name == "erm"),
                AdapterChoice(name="union"),
            ),
        )
        for name in ("erm", "cs-arm-bn")
    )
    given = {
        "arms": arms,
        "folds": (("b04",),),
        "split": SplitConfig(select_on="wells"),
        "seeds": (0,),
        "regimes": (Regime(), Regime(alpha=0.1, num_images=4, num_controls=2)),
    }
    return GridConfig(**{**given, **settings})


class Kill(Exception):
    pass


def test_a_killed_grid_goes_on_without_repeating(tiny, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run_grid(tiny, small_grid(), whole)
    calls = []

    def kill(note):
        calls.append(note.text)
        if sum("adapter" in text for text in calls) == 4:
            raise Kill

    with pytest.raises(Kill):
        run_grid(tiny, small_grid(), halves, on_note=kill)
    with (halves / "records.jsonl").open("a") as file:
        file.write('{"kind": "value", "metr')  # a line that the crash cut short
    done = {r.cell for r in records.read(halves)}
    second = []
    run_grid(tiny, small_grid(), halves, on_note=lambda note: second.append(note))
    trained_again = [n for n in second if n.progress is not None and n.text.startswith("erm")]
    assert not trained_again
    assert len(done) >= 3

    def values(folder):
        return {
            (*r.identity(), r.method, r.adapter): r.value
            for r in records.read(folder)
            if r.kind == "value"
        }

    assert values(whole) == values(halves)
    third = []
    run_grid(tiny, small_grid(), halves, on_note=lambda note: third.append(note.text))
    assert third == ["done"]


def test_grid_to_report(tiny, tmp_path):
    out = run_grid(tiny, small_grid(description="Which?"), tmp_path / "g")
    page = api.report(out)
    first = page.read_bytes()
    assert api.report(out).read_bytes() == first
    rows = json.loads(api.rows_as_json(api.results(out)))
    seen = {(r["protocol"], r["method"], r["adapter"], r["alpha"]) for r in rows}
    assert ("new-batch", "cs-arm-bn", "union", 0.1) in seen
    assert ("in-domain", "erm", "source", None) in seen
    kinds = {r.metric for r in records.read(out) if r.kind == "artifact"}
    assert {
        "screen",
        "findings",
        "predictions",
        "embedding",
        "control-drift",
        "example-fields",
    } <= kinds
    about = next(r for r in records.read(out) if r.metric == "screen")
    assert json.loads((out / about.path).read_text())["simulated"] is True
    shutil.rmtree(out / "artifacts")
    with pytest.raises(InputError):
        api.report(out)


def test_results_of_another_screen_are_refused(tiny, tmp_path):
    out = run_grid(tiny, small_grid(), tmp_path / "g")
    other = copy_screen(tiny, tmp_path / "other", keep=np.arange(tiny.num_images - 1))
    with pytest.raises(InputError, match="another screen"):
        run_grid(other, small_grid(), out)


def test_new_source_leaves_sources_out(tiny, tmp_path):
    def two_sources(manifest):
        later = manifest["Metadata_Batch"].isin(["b03", "b04"])
        return manifest.assign(Metadata_Source=np.where(later, "s2", "s1"))

    screen = copy_screen(tiny, tmp_path / "two", change=two_sources)
    grid = small_grid(protocol="new-source", folds=(("s2",),), regimes=(Regime(),))
    run_grid(screen, grid, tmp_path / "g")
    judged = [r for r in records.read(tmp_path / "g") if r.unit_role == "domain"]
    assert {r.unit for r in judged if r.protocol == "new-source"} == {"b03", "b04"}
    assert {r.unit for r in judged if r.protocol == "in-domain"} == {"b01", "b02"}


def test_adapters_that_see_no_perturbed_image_are_fitted_once(tiny, trained):
    from evenfield.data.split import contexts_for, make_split
    from evenfield.profile.plates import make_adapter, reader_for
    from evenfield.train.checkpoint import open_model

    model = open_model(trained)
    reader = reader_for(model, tiny)
    rows = make_split(reader.coded, SPLIT).test
    contexts = contexts_for(reader.coded, rows, Regime(num_images=1), seed=0)
    adapter = make_adapter("controls")
    fits = []
    original = adapter.fit
    adapter.fit = lambda *a: fits.append(1) or original(*a)
    merged = predict_contexts(model.method.predictor, reader, contexts, adapter)
    assert len(fits) == 2  # two plates
    single = [predict_contexts(model.method.predictor, reader, [c], adapter) for c in contexts[:5]]
    for number, item in enumerate(single):
        at = np.flatnonzero(merged.context == number)
        np.testing.assert_array_equal(merged.row[at], item.row)
        np.testing.assert_allclose(merged.log_prob[at], item.log_prob, atol=1e-5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["train", "ermm", "x", "y"], "there is no method called 'ermm'"),
        (["predict", "nowhere", "SCREEN", "p.parquet"], "there is no checkpoint"),
        (["bench", "nogrid", "SCREEN", "out"], "there is no grid called 'nogrid'"),
        (["report", "nowhere"], "there are no records"),
        (["audit", "nowhere"], "nowhere"),
    ],
)
def test_errors_say_what_to_do_and_exit_with_two(
    line, message, tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run([str(tiny.folder) if word == "SCREEN" else word for word in line]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "What to do:" in error
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_the_command_line_from_plates_to_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = ["--train.epochs", "1", "--train.num-perturbed", "8", "--train.num-controls", "4"]
    split = ["--split.test", "b04", "--split.select-on", "wells"]
    for line in (
        ["simulate", "screen", "--preset", "tiny", "-q"],
        ["audit", "screen"],
        ["train", "cs-arm-bn", "screen", "run", *train, *split, "--train.accumulate", "1"],
        ["adapt", "run", "screen", "states"],
        ["predict", "run", "screen", "p.parquet", "--adapted", "states"],
        ["evaluate", "run", "screen", "results", "--adapters", "source", "native"],
        ["report", "results"],
    ):
        assert run(line) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert run(["results", "results", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert (tmp_path / "results/report.html").exists()
    config = json.loads((tmp_path / "run/run.json").read_text())["config"]
    assert config["train"]["num_perturbed"] == 8
    assert config["options"] == {"context_train": "union", "control_gradient": True}
    assert replace(TRAIN).epochs == 2


def test_a_label_column_with_one_class(tiny, tmp_path):
    def one(manifest):
        label = manifest["Metadata_Label"]
        return manifest.assign(Metadata_Label=label.where(label.fillna("") == "", "same"))

    screen = copy_screen(tiny, tmp_path / "one", change=one)
    with pytest.raises(InputError, match=r"hold 1 class\(es\): same"):
        api.train("erm", screen.folder, tmp_path / "run", split=SPLIT, train=TRAIN)
