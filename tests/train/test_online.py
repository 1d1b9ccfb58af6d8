"""CODA's step 3: labels and source images stay out of reach, the classifier stays as it is."""

import copy
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from evenfield.bench import stream
from evenfield.bench.deploy import predict_plates
from evenfield.bench.stream import arriving, follow, plates_to_follow
from evenfield.config import Crops, RunConfig, SplitConfig, TrainConfig, View
from evenfield.data import dataset
from evenfield.data.pairs import find_partners
from evenfield.data.profiles import read_profiles
from evenfield.data.unlabelled import Unlabelled
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.profile.embed import embed
from evenfield.profile.plates import make_adapter
from evenfield.train import checkpoint, online
from evenfield.train.online import adapt, pairs_of, started
from evenfield.train.online_config import OnlineConfig
from evenfield.train.run import fit
from evenfield.train.watch import Watch, mutual_information

# The first plate of a stream has no other one to find partners on, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:pairs by")
SPLIT = SplitConfig(test=("b04",), select_on="wells")
VIEW = View(crops=Crops(global_side=16, local_side=8, num_local=2))
TRAIN = TrainConfig(num_perturbed=16, accumulate=1, epochs=1, select_by="last", clip=1.0)
SHORT = OnlineConfig(steps=4, size=8, check_every=2, watched=8)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """The folders of steps 1 and 2, which nothing changes."""
    folder = tmp_path_factory.mktemp("coda")
    options = {"num_outputs": 12, "hidden": 16, "bottleneck": 8, "freeze_last": 0.0}
    first = RunConfig(method="dino", options=options, view=VIEW, split=SPLIT, train=TRAIN)
    fit(tiny, first, folder / "dino")
    second = replace(
        first,
        method="frozen",
        options={"task": "linear"},
        train=replace(TRAIN, weights=folder / "dino"),
    )
    fit(tiny, second, folder / "frozen")
    return folder


@pytest.fixture
def models(runs):
    return [checkpoint.open_model(runs / name) for name in ("dino", "frozen")]


def index_of(folder):
    return json.loads((folder / "adapted.json").read_text())


def networks_of(folder, number=-1):
    return checkpoint.load(folder / index_of(folder)["arrivals"][number]["file"])["networks"]


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def readers_of(models, screen):
    dino, frozen = models
    args = (screen, frozen.roles, VIEW, frozen.normaliser, torch.device("cpu"))
    return Unlabelled(*args, dino.method.needs), Unlabelled(*args)


def test_a_reader_of_new_plates_refuses_labels(tiny, models):
    reader = readers_of(models, tiny)[0]
    with pytest.raises(InputError, match="labels of plates"):
        _ = reader.coded.label
    assert "Metadata_Label" not in reader.screen.manifest
    assert "Metadata_Label" in tiny.manifest
    batch = reader.batch(np.arange(4), seed=0, train=True)
    assert (batch.label == -1).all()
    assert batch.global_views.shape == (4, 2, 5, 16, 16)


def test_no_source_image_and_no_label_is_read_and_the_classifier_stays(
    tiny, runs, models, tmp_path, monkeypatch
):
    """The screen's labels are nonsense here, and every row that is read is written down."""
    seen = []
    read = dataset.read

    def spy(pixels, rows, *args, **options):
        seen.append(np.array(rows))
        return read(pixels, rows, *args, **options)

    monkeypatch.setattr(dataset, "read", spy)
    dino, frozen = models
    before = [copy.deepcopy(m.method.state_dict()) for m in models]
    blind = copy.copy(tiny)
    blind.manifest = tiny.manifest.drop(columns="Metadata_Label")
    config = replace(SHORT, anchor=0.5, patience=2)
    follow(dino, frozen, blind, tmp_path / "out", config)
    batch = tiny.manifest["Metadata_Batch"].to_numpy()
    assert len(seen) > 8
    assert set(batch[np.concatenate(seen)]) == {"b04"}
    assert all(same(m.method.state_dict(), b) for m, b in zip(models, before, strict=True))
    for entry in index_of(tmp_path / "out")["arrivals"]:
        state = checkpoint.load(tmp_path / "out" / entry["file"])["state"]
        assert all(name.startswith("model.backbone.encoder.") for name in state)


def test_the_start_is_that_of_the_pretraining_and_the_centre_is_zero(models):
    dino = models[0]
    assert dino.method.centre.abs().sum() > 0
    own = started(dino, None)
    assert not own.centre.any()
    kept = started(dino, None, keep_centre=True)
    assert torch.equal(kept.centre, dino.method.centre)
    assert same(own.networks.state_dict(), dino.method.networks.state_dict())
    assert own.networks.student is not dino.method.networks.student


def test_the_state_is_the_teachers_encoder_and_predict_takes_it(tiny, models, tmp_path):
    dino, frozen = models
    follow(dino, frozen, tiny, tmp_path / "out", replace(SHORT, lr=0.01))
    index = index_of(tmp_path / "out")
    assert len(index["plates"]) == 2
    entry = index["arrivals"][0]
    content = checkpoint.load(tmp_path / "out" / entry["file"])
    for name, value in content["state"].items():
        leaf = name.removeprefix("model.backbone.encoder.network.")
        assert torch.equal(value, content["networks"][f"networks.teacher.{leaf}"])
    assert content["state"]
    table = predict_plates(
        frozen, tiny, tmp_path / "a.parquet", "source", {}, adapted=tmp_path / "out", level="image"
    )
    assert set(table["Metadata_Plate"]) == set(index["plates"])
    plain = predict_plates(
        frozen, tiny, tmp_path / "b.parquet", "source", {}, adapted=None, level="image"
    )
    key = ["Metadata_Plate", "Metadata_Well"]
    value = f"Prediction_Probability_{frozen.classes[0]}"
    both = pd.merge(table, plain, on=key, suffixes=("", "_plain"))
    assert len(both) == len(table)
    assert not np.allclose(both[value], both[f"{value}_plain"])


class Stop(Exception):
    pass


def test_resumed_equals_uninterrupted_and_an_arrival_that_is_done_is_left(tiny, models, tmp_path):
    config = replace(SHORT, start="previous", checkpoint_seconds=1e-9, patience=9)
    follow(*models, tiny, tmp_path / "whole", config)

    def stop(name, step, total, parts):
        if name == last and step == 3:
            raise Stop

    last = list(index_of(tmp_path / "whole")["plates"])[-1]
    with pytest.raises(Stop):
        follow(*models, tiny, tmp_path / "halves", config, on_progress=stop)
    assert len(index_of(tmp_path / "halves")["arrivals"]) == 1
    assert list((tmp_path / "halves").glob("*.partial.pt"))
    steps = []
    follow(
        *models, tiny, tmp_path / "halves", config, on_progress=lambda n, s, t, p: steps.append(s)
    )
    assert steps == [4]  # the first arrival is done, three steps of the second are kept
    assert not list((tmp_path / "halves").glob("*.partial.pt"))
    assert same(networks_of(tmp_path / "whole"), networks_of(tmp_path / "halves"))
    assert index_of(tmp_path / "whole") == {
        **index_of(tmp_path / "halves"),
        "plates": index_of(tmp_path / "whole")["plates"],
        "arrivals": index_of(tmp_path / "whole")["arrivals"],
    }
    with pytest.raises(InputError, match="another model, screen or setting"):
        follow(*models, tiny, tmp_path / "halves", replace(config, size=4))


@pytest.mark.parametrize("start", ["source", "previous"])
def test_the_next_arrival_starts_where_it_is_told(tiny, models, tmp_path, monkeypatch, start):
    begun = []

    def note(pretrained, networks, **options):
        own = started(pretrained, networks, **options)
        begun.append(copy.deepcopy(own.networks.state_dict()))
        return own

    monkeypatch.setattr(stream, "started", note)
    follow(*models, tiny, tmp_path / "out", replace(SHORT, start=start, lr=0.01))
    source = models[0].method.networks.state_dict()
    kept = {
        name.removeprefix("networks."): value
        for name, value in networks_of(tmp_path / "out", 0).items()
        if name.startswith("networks.")
    }
    assert same(begun[0], source)
    assert not same(kept, source)
    assert same(begun[1], source if start == "source" else kept)
    if start == "previous":  # and another folder goes on where this one ended
        follow(*models, tiny, tmp_path / "on", SHORT, after=tmp_path / "out")
        ended = networks_of(tmp_path / "out")
        assert all(torch.equal(v, ended[f"networks.{name}"]) for name, v in begun[2].items())


def test_plates_learn_together_or_from_those_that_have_arrived(tiny, models):
    reader = readers_of(models, tiny)[0]
    names = plates_to_follow(models[1], tiny, reader, SHORT)
    plate = tiny.manifest["Metadata_Plate"].to_numpy()
    assert set(names) == set(plate[tiny.manifest["Metadata_Batch"] == "b04"])
    for pool, wanted in (("new", {names[1]}), ("arrived", set(names))):
        found = arriving(reader, names[1:], names[:1], replace(SHORT, pool=pool))
        assert set(plate[found.rows]) == wanted
        assert set(plate[found.controls]) == {names[1]}
        assert not reader.coded.is_control[found.rows].any()
    every = arriving(reader, names[:1], [], replace(SHORT, images="all"))
    assert reader.coded.is_control[every.rows].any()
    with pytest.raises(InputError, match="no plate 'b99'"):
        plates_to_follow(models[1], tiny, reader, replace(SHORT, plates=("b99",)))


def test_partners_are_of_the_same_treatment_on_another_plate_and_one_plate_falls_back(tiny, models):
    reader = readers_of(models, tiny)[0]
    names = plates_to_follow(models[1], tiny, reader, SHORT)
    plate = tiny.manifest["Metadata_Plate"].to_numpy()
    treatment = tiny.manifest["Metadata_Treatment"].to_numpy()
    both = arriving(reader, names, [], SHORT)
    sampler, _ = pairs_of(both, reader, SHORT)
    rows = np.concatenate([sampler.rows(step) for step in range(6)])
    assert (treatment[rows[:, 0]] == treatment[rows[:, 1]]).all()
    assert (plate[rows[:, 0]] != plate[rows[:, 1]]).all()
    one = arriving(reader, names[:1], [], SHORT)
    with pytest.warns(EvenfieldWarning, match="paired with themselves"):
        sampler, (first, second) = pairs_of(one, reader, SHORT)
    rows = sampler.rows(0)
    assert (rows[:, 0] == rows[:, 1]).all()  # ODA: both global views of one image
    assert (first == second).all()
    with pytest.raises(InputError, match="have no image of their treatment"):
        pairs_of(one, reader, replace(SHORT, missing_pairs="error"))
    assert pairs_of(both, reader, replace(SHORT, pairs="none"))[0].rows(0).ndim == 1


def run_adapt(models, screen, path, **changes):
    config = replace(SHORT, **{"lr": 0.05} | changes)
    readers = readers_of(models, screen)
    names = plates_to_follow(models[1], screen, readers[0], config)
    arrival = arriving(readers[0], names, [], config)
    own = started(models[0], None)
    return adapt(own, *models, arrival, readers, config, path)


@pytest.mark.parametrize("positions", ["any", "other"])
def test_partners_lie_where_those_of_the_pretraining_lay(
    tiny, models, tmp_path, monkeypatch, positions
):
    dino, frozen = models
    train = replace(dino.config.train, pair_positions=positions)
    dino = replace(dino, config=replace(dino.config, train=train))
    asked = []

    def spy(*args, other_position, **kwargs):
        asked.append(other_position)
        return find_partners(*args, other_position=other_position, **kwargs)

    monkeypatch.setattr(online, "find_partners", spy)
    run_adapt([dino, frozen], tiny, tmp_path / "a.pt", steps=1)
    assert asked == [positions == "other"]


def test_the_anchor_holds_the_student_near_the_source(tiny, models, tmp_path):
    moved = []
    source = models[0].method.networks.teacher.eval()
    image = torch.randn(16, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    for weight in (0.0, 100.0):
        found = run_adapt(models, tiny, tmp_path / "p.pt", steps=20, anchor=weight, lr=0.005)
        own = started(models[0], found.networks)
        with torch.no_grad():
            moved.append(
                float(
                    online.distance(
                        own.networks.student.eval()(image)[:, None], source(image)[:, None]
                    )
                )
            )
    assert moved[1] < 0.7 * moved[0]


def test_the_rule_keeps_the_best_state_and_the_budget_ends_it(tiny, models, tmp_path, monkeypatch):
    values = iter([0.5, 0.9, 0.8, 0.7, 0.6])
    monkeypatch.setattr(online, "agreement", lambda *_: next(values))
    found = run_adapt(models, tiny, tmp_path / "p.pt", steps=50, check_every=1, patience=2)
    assert found.watch.stopped == "agreement"
    assert (found.step, found.watch.best_step) == (3, 1)
    monkeypatch.undo()
    once = run_adapt(models, tiny, tmp_path / "p.pt", steps=1)
    assert same(found.networks, once.networks)  # no schedule has moved at the first step
    late = run_adapt(models, tiny, tmp_path / "p.pt", steps=500, minutes=1e-9)
    assert late.step == 1


def test_drift_of_the_controls_stops_and_the_source_may_be_what_is_kept(
    tiny, models, tmp_path, monkeypatch
):
    far = iter([2.0, 7.0])
    monkeypatch.setattr(online, "control_drift", lambda *_: next(far))
    found = run_adapt(models, tiny, tmp_path / "p.pt", check_every=1, drift=3.0)
    assert (found.watch.stopped, found.watch.best_step, found.step) == ("drift", 0, 1)
    teacher = models[0].method.networks.teacher.state_dict()
    assert same(found.predictor.backbone.encoder.network.state_dict(), teacher)


def test_agreement_is_low_for_disagreement_and_for_collapse():
    k = 4
    sure = torch.eye(k).repeat(3, 1)
    assert mutual_information(sure, sure).item() == pytest.approx(np.log(k), rel=1e-5)
    collapsed = sure[[0]].expand(12, k)
    assert mutual_information(collapsed, collapsed).item() == pytest.approx(0, abs=1e-6)
    random = torch.randn(2, 12, k, generator=torch.Generator().manual_seed(0)).softmax(-1)
    pairs = zip(*random.double(), strict=True)
    joint = sum(torch.outer(a, b) for a, b in pairs) / 12
    by_hand = sum(
        joint[a, b] * torch.log(joint[a, b] / (joint[a].sum() * joint[:, b].sum()))
        for a in range(k)
        for b in range(k)
    )
    assert mutual_information(*random).item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_without_a_rule_the_last_state_is_kept_whatever_was_seen():
    watch, config = Watch(), OnlineConfig()
    for step, value in enumerate([0.9, 0.1, 0.1, 0.1]):
        watch.add(step, value, 100.0, config)
    assert not watch.stopped
    assert not config.stops


def test_runs_that_do_not_belong_together_are_refused(tiny, models, tmp_path):
    dino, frozen = models
    with pytest.raises(InputError, match="not with frozen"):
        follow(frozen, frozen, tiny, tmp_path / "a", SHORT)
    with pytest.raises(InputError, match="no classifier on a frozen encoder"):
        follow(dino, dino, tiny, tmp_path / "a", SHORT)
    other = copy.deepcopy(dino)
    next(iter(other.method.predictor.backbone.parameters())).data.add_(1)
    with pytest.raises(InputError, match="another encoder"):
        follow(other, frozen, tiny, tmp_path / "a", SHORT)
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="size is 0"):
        replace(SHORT, size=0)


def test_the_four_steps_with_a_vision_transformer_and_plates_that_arrive_together(tiny, tmp_path):
    train = replace(TRAIN, backbone="vit-tiny", num_perturbed=48)
    options = {"num_outputs": 12, "hidden": 16, "bottleneck": 8}
    config = RunConfig(method="dino", options=options, view=VIEW, split=SPLIT, train=train)
    dino = fit(tiny, config, tmp_path / "dino")
    second = replace(train, weights=tmp_path / "dino")
    frozen = fit(
        tiny, replace(config, method="frozen", options={}, train=second), tmp_path / "frozen"
    )
    out = tmp_path / "out"
    follow(dino, frozen, tiny, out, replace(SHORT, steps=1, together=True, anchor=1.0, lr=0.01))
    index = index_of(out)
    assert len(index["arrivals"]) == 1
    assert len({entry["file"] for entry in index["plates"].values()}) == 1
    assert len(index["plates"]) == 2
    state = checkpoint.load(out / index["arrivals"][0]["file"])["state"]
    assert {name.split(".")[2] for name in state} == {"encoder"}
    table = predict_plates(
        frozen, tiny, tmp_path / "p.parquet", "source", {}, adapted=out, level="well"
    )
    assert set(table["Metadata_Plate"]) == set(index["plates"])
    embed(frozen, tiny, tmp_path / "f.parquet", adapted=out, features="encoder")
    profiles = read_profiles(tmp_path / "f.parquet")
    first = profiles.metadata["Metadata_Plate"].iloc[0]
    rows = np.flatnonzero(tiny.manifest["Metadata_Plate"] == first)[:4]
    image = readers_of([dino, frozen], tiny)[1].images(rows)
    adapted = make_adapter("source").restore(frozen.method.predictor, state)
    expected = adapted.model.backbone.encoder(image)[:, 0]
    torch.testing.assert_close(torch.tensor(profiles.features[:4]), expected)
    with pytest.raises(InputError, match="no classifier on a frozen encoder"):
        embed(dino, tiny, tmp_path / "g.parquet", features="encoder")
