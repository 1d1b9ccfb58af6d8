"""Every option of the loop: two steps and more on a screen; a resumed run equals a whole one."""

import json
from dataclasses import replace

import pytest
import torch

from evenfield.config import RunConfig, SplitConfig, TrainConfig
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.train import checkpoint, run
from evenfield.train.run import fit

CONFIG = RunConfig(
    method="erm",
    split=SplitConfig(test=("b04",), validation=("b03",)),
    train=TrainConfig(
        num_perturbed=24, num_domains=2, accumulate=1, epochs=2, patience=9, checkpoint_seconds=0.0
    ),
)
OPTIONS = {
    "fish": {"meta_lr": 0.5, "optimiser": "adamw", "weight_decay": 0.1, "clip": 0.5},
    "sgd": {
        "optimiser": "sgd",
        "lr": 0.01,
        "schedule": "linear",
        "warmup": 0.3,
        "balance": "class",
    },
    "chunks": {"sampler": "chunks", "select_by": "worst-domain", "schedule": "cosine"},
    "pure": {"sampler": "shuffled", "pure": "Metadata_Plate", "num_perturbed": 8},
}


class Stop(Exception):
    pass


def stop_at(step):
    def stop(note):
        if note.step == step:
            raise Stop

    return stop


def same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_resumed_equals_uninterrupted(tiny, tmp_path, name):
    config = replace(CONFIG, train=replace(CONFIG.train, **OPTIONS[name]))
    steps = check_resume(tiny, tmp_path, config, stop=3)
    assert steps > 4


@pytest.fixture
def level(monkeypatch):
    """Every validation finds the same loss: a valley from the first on."""
    monkeypatch.setattr(run, "validate", lambda *args: {"loss": 1.0})


SWAD = replace(CONFIG, train=replace(CONFIG.train, average="swad", epochs=4, lr=1e-2))


@pytest.mark.parametrize("stop", [5, 11])  # before the valley is seen, and in it
def test_resumed_average_equals_uninterrupted(tiny, tmp_path, level, stop):
    assert check_resume(tiny, tmp_path, SWAD, stop) == 12


def test_resumed_just_before_the_optimiser_is_reset(tiny, tmp_path):
    config = replace(CONFIG, method="irm", options={"weight": 10.0, "anneal": 0.5})
    # After this many steps the state is cleared, once, before the next.
    assert check_resume(tiny, tmp_path, config, stop=3) == 6


def check_resume(screen, folder, config, stop):
    fit(screen, config, folder / "whole")
    with pytest.raises(Stop):
        fit(screen, config, folder / "halves", on_progress=stop_at(stop))
    fit(screen, config, folder / "halves")
    one, two = (
        {which: checkpoint.load(folder / name / f"{which}.pt") for which in ("last", "best")}
        for name in ("whole", "halves")
    )
    for which in ("last", "best"):
        same(one[which]["method"], two[which]["method"])
        assert one[which]["state"] == two[which]["state"]
    assert one["best"].get("averaged") == two["best"].get("averaged")
    histories = [(folder / name / "history.jsonl").read_text() for name in ("whole", "halves")]
    assert histories[0] == histories[1]
    return one["last"]["state"]["step"]


def test_best_holds_the_average_and_statistics_that_belong_to_it(tiny, tmp_path, level):
    fit(tiny, SWAD, tmp_path / "run")
    best, last = (checkpoint.load(tmp_path / f"run/{name}.pt") for name in ("best", "last"))
    valley = last["valley"]["average"]
    assert best["averaged"] == valley["num"] == 12
    for name, tensor in best["method"].items():
        if name in valley["weights"]:
            assert torch.equal(tensor, valley["weights"][name]), name
        assert not torch.equal(tensor, last["method"][name]), name


def test_without_a_valley_the_best_single_weights_stay_and_that_is_said(tiny, tmp_path):
    train = replace(CONFIG.train, average="swad", epochs=2)
    with pytest.warns(EvenfieldWarning, match="no valley"):
        fit(tiny, replace(CONFIG, train=train), tmp_path / "swad")
    fit(tiny, replace(CONFIG, train=replace(train, average="none")), tmp_path / "plain")
    one, two = (checkpoint.load(tmp_path / f"{name}/best.pt") for name in ("swad", "plain"))
    same(one["method"], two["method"])
    assert "averaged" not in one


def test_history_tells_all_parts_at_each_validation(tiny, tmp_path):
    train = replace(CONFIG.train, epochs=2, select_by="worst-domain")
    config = replace(CONFIG, method="coral", train=train)
    config = replace(config, split=SplitConfig(test=("b04",), select_on="wells"))
    fit(tiny, config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/history.jsonl").open()]
    assert len(lines) == 2
    for line in lines:
        assert {"total", "risk"} < set(line["losses"])
        parts = set(line["losses"]) - {"total"}
        assert parts | {"loss", "accuracy", "worst-domain"} == set(line["found"])
        assert line["found"]["worst-domain"] <= line["found"]["accuracy"]
        assert line["validation"] == 1 - line["found"]["worst-domain"]
    state = checkpoint.load(tmp_path / "run/best.pt")["state"]
    assert state["best"] == min(line["validation"] for line in lines)


def test_a_setting_that_cannot_be_used_leaves_the_folder_free(tiny, tmp_path):
    bad = replace(CONFIG, train=replace(CONFIG.train, warmup=2.0, epochs=1))
    with pytest.raises(InputError, match="warmup is 2"):
        fit(tiny, bad, tmp_path / "run")
    fit(tiny, replace(bad, train=replace(bad.train, warmup=0.0)), tmp_path / "run")
