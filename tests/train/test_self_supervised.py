"""Self-supervised methods in the loop: exact resume, schedules, what is clipped, what is kept."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from evenfield.config import Crops, RunConfig, SplitConfig, TrainConfig, View, from_dict, to_dict
from evenfield.data.fake import fake_batch
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.train import checkpoint
from evenfield.train.loop import optimise, selection
from evenfield.train.optimiser import clipped, optimiser_for, set_decays
from evenfield.train.run import fit
from evenfield.train.setup import prepare_run
from evenfield.train.validate import labelled_rows

SMALL = {
    "dino": {"num_outputs": 16, "hidden": 8, "bottleneck": 8, "weight_decay_end": 0.1},
    "cdcl": {"num_outputs": 16, "hidden": 8, "bottleneck": 8, "num_domains": 8},
    "byol": {"hidden": 8, "projection": 8},
    "simclr": {"hidden": 8, "projection": 8},
}


def config(method, **train):
    return RunConfig(
        method=method,
        options=SMALL[method],
        view=View(crops=Crops(global_side=24, local_side=16, num_local=2, shift=0.1)),
        split=SplitConfig(test=("b04",), validation=("b03",)),
        train=TrainConfig(
            num_perturbed=32,
            accumulate=1,
            optimiser="adamw",
            weight_decay=0.01,
            clip=3.0,
            warmup=0.1,
            schedule="cosine",
            checkpoint_seconds=0.0,
            **train,
        ),
    )


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "pairs"), [("dino", "plate"), ("cdcl", "auto"), ("byol", "none"), ("simclr", "none")]
)
def test_resumed_equals_uninterrupted(tiny, tmp_path, method, pairs):
    given = config(method, epochs=2, pairs=pairs)
    fit(tiny, given, tmp_path / "whole")

    def stop(note):
        if note.step == 3:
            raise Stop

    with pytest.raises(Stop):
        fit(tiny, given, tmp_path / "halves", on_progress=stop)
    model = fit(tiny, given, tmp_path / "halves")
    one, two = (checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "halves"))
    assert one["method"].keys() == two["method"].keys()
    for name, value in one["method"].items():
        assert torch.equal(value, two["method"][name]), name
    best = checkpoint.load(tmp_path / "halves/best.pt")["method"]
    assert all(torch.equal(value, best[name]) for name, value in one["method"].items())
    histories = [(tmp_path / n / "history.jsonl").read_text() for n in ("whole", "halves")]
    assert histories[0] == histories[1]
    deployed = model.method.predictor
    image = torch.randn(2, tiny.shape[0], 32, 32)
    assert deployed(image).shape == (2, len(model.classes))
    if method == "dino":
        kept = model.method.state_dict()
        assert any(
            not torch.equal(kept[name], kept[name.replace("teacher", "student")])
            for name in kept
            if name.startswith("networks.teacher.")
        )


def test_the_loss_of_a_self_supervised_method_selects_nothing():
    backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    dino, erm = (
        METHODS[name](METHODS[name].Config(**SMALL.get(name, {})), backbone=backbone, d=3, k=3, c=3)
        for name in ("dino", "erm")
    )
    assert selection(dino, "loss") == "last"
    assert selection(dino, "accuracy") == "accuracy"
    assert selection(erm, "loss") == "loss"
    assert selection(erm, "last") == "last"


def dino_with(make_backbone, **options):
    cls = METHODS["dino"]
    return cls(cls.Config(**SMALL["dino"] | options), backbone=make_backbone(3), d=4, k=3, c=3)


def test_the_vote_of_training_neighbours_selects(tiny, tmp_path):
    given = config("dino", epochs=3, select_by="knn", patience=3)
    fit(tiny, given, tmp_path / "run")
    told = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").open()]
    assert [note["validation"] for note in told] == [1 - note["found"]["knn"] for note in told]
    lowest = min(note["validation"] for note in told)
    first = next(note["step"] for note in told if note["validation"] == lowest)
    assert checkpoint.load(tmp_path / "run" / "best.pt")["state"]["best_step"] == first

    setup = prepare_run(tiny, given, tiny.roles)
    voters = np.concatenate(labelled_rows(setup))
    train = setup.split.train
    np.testing.assert_array_equal(voters, train[setup.coded.label[train] >= 0])
    bare = replace(setup, split=replace(setup.split, train=np.flatnonzero(setup.coded.label < 0)))
    with pytest.raises(InputError, match="no training image has a label"):
        labelled_rows(bare)


def test_weight_decay_follows_a_cosine_and_the_probe_keeps_its_own(make_backbone):
    method = dino_with(make_backbone, probe_decay=0.3, probe_lr=0.2)
    optimiser = optimiser_for(method, TrainConfig(optimiser="adamw", weight_decay=0.02, lr=0.1))
    for progress in (0.0, 0.25, 1.0):
        set_decays(optimiser, progress)
        matrices, vectors, probe = (group["weight_decay"] for group in optimiser.param_groups)
        assert matrices == pytest.approx(0.1 - 0.08 * 0.5 * (1 + math.cos(math.pi * progress)))
        assert (vectors, probe) == (0.0, 0.3)
    twin = optimiser_for(method, TrainConfig(optimiser="adamw", weight_decay=0.02, lr=0.1))
    twin.load_state_dict(optimiser.state_dict())  # resumed at the end: the start is remembered
    set_decays(twin, 0.0)
    assert twin.param_groups[0]["weight_decay"] == pytest.approx(0.02)
    assert [group["lr"] for group in twin.param_groups] == [0.1, 0.1, 0.2]


def test_the_probe_is_neither_clipped_nor_counted(make_backbone):
    method = dino_with(make_backbone).train()
    optimiser = optimiser_for(method, TrainConfig(optimiser="sgd", momentum=0.0, lr=0.0))
    clip = 1e-3
    list(optimise(method, optimiser, [fake_batch(method.needs)], total=2, start=1, clip=clip))
    weights = clipped(optimiser)
    norm = torch.stack([w.grad.norm() for w in weights if w.grad is not None]).norm().item()
    assert norm == pytest.approx(clip, rel=1e-3)
    assert method.predictor.head.weight.grad.norm() > 10 * clip
    assert all(w is not method.predictor.head.weight for w in weights)


def test_a_vision_transformer_trains_on_pairs_with_unlabelled_images(tiny, tmp_path):
    given = config("dino", pairs="batch", unlabelled="all", backbone="vit-tiny")
    steps = []

    def two(note):
        steps.append(note.losses["dino"])
        if len(steps) == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(tiny, given, tmp_path / "run", on_progress=two)
    assert np.isfinite(steps).all()


def test_crops_that_the_network_cannot_read_are_refused(tiny):
    small = replace(config("dino"), view=View(crops=Crops(local_side=4)))
    with pytest.raises(InputError, match="needs images of 8 pixels"):
        prepare_run(tiny, small, tiny.roles)
    without = replace(config("simclr"), view=View(crops=Crops(local_side=4)))
    prepare_run(tiny, without, tiny.roles)  # it takes no local crops


def test_nested_settings_go_to_json_and_back():
    given = config("cdcl", pairs="source", pair_positions="other")
    assert from_dict(RunConfig, to_dict(given)) == given
    with pytest.raises(InputError, match=r"crops.* has no setting 'sides'"):
        from_dict(RunConfig, {"view": {"crops": {"sides": 3}}})
