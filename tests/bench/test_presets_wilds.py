"""Every published comparison runs: two steps of each arm, on a miniature of its data set."""

import json
import re
from dataclasses import replace

import pytest
import torch
from public_miniatures import wilds_camelyon17, wilds_rxrx1

from evenfield import api, records
from evenfield.bench.grid import Arm, run_grid
from evenfield.bench.presets import PRESETS
from evenfield.bench.presets.wilds import WILDS
from evenfield.cli import PRESET_NAMES
from evenfield.data.ingest import ingest
from evenfield.data.sources import SOURCES
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.nn.backbones import BACKBONES, build_backbone

SIDE = 64  # the least that ContriMix takes


@pytest.fixture(scope="module")
def screens(tmp_path_factory):
    found = {}
    for name, write in (("camelyon17", wilds_camelyon17), ("rxrx1", wilds_rxrx1)):
        folder = tmp_path_factory.mktemp(name)
        write(folder, side=SIDE)
        reader = f"wilds-{name}"
        config = SOURCES[reader].Config(folder=folder, check_sizes=False)
        found[name] = ingest(reader, config, folder / "screen", workers=1)
    return found


def small(arm: Arm, backbone: str = "cnn-small") -> Arm:
    """The same arm in two steps of 18 images (36 train), with a small network."""
    domains = min(arm.train.num_domains, 3) if arm.train.distinct_domains else 18
    train = replace(
        arm.train, backbone=backbone, num_perturbed=18, num_domains=domains, epochs=1, patience=1
    )
    crop = SIDE if arm.method == "contrimix" else 32
    return replace(arm, train=train, view=replace(arm.view, crop=crop))


@pytest.mark.parametrize("name", WILDS)
def test_two_steps(name, screens, tmp_path):
    preset = WILDS[name]()
    screen = screens[name.split("-")[0]]
    grid = replace(preset, arms=tuple(map(small, preset.arms)), seeds=(0,))
    steps = []
    out = run_grid(screen, grid, tmp_path / "out", on_note=lambda note: steps.append(note.progress))
    assert max(progress.step for progress in steps if progress) == 2
    found = [r for r in records.read(out) if r.kind == "value"]
    standard = {(r.method, r.adapter) for r in found if r.protocol == preset.protocol}
    assert standard == {(arm.label, "source") for arm in preset.arms}
    others = {r.adapter for r in found if "transductive" in r.protocol}
    assert others == ({"batch"} if name == "rxrx1-wilds-erm" else set())
    assert {r.metric for r in found} >= {"accuracy", "acc_avg", "acc_wg"}


def test_two_steps_of_the_network_itself(screens, tmp_path):
    (arm,) = WILDS["camelyon17-erm"]().arms
    grid = replace(WILDS["camelyon17-erm"](), arms=(small(arm, arm.train.backbone),), seeds=(3,))
    out = run_grid(screens["camelyon17"], grid, tmp_path / "out")
    (run,) = (out / "runs").iterdir()
    assert len(torch.load(run / "best.pt", weights_only=True)["method"]) > 600  # DenseNet-121


@pytest.mark.parametrize("name", WILDS)
def test_settings_and_what_is_promised(name):
    preset, text = WILDS[name](), WILDS[name].__doc__
    for part in (f"evenfield bench {name} SCREEN OUT", "Expected", "Hours", "arXiv|PMLR|Koh"):
        assert re.search(part, text), part
    assert preset.rules == "wilds"
    assert preset.split.column == "Metadata_Split"
    assert preset.split.select_on == "units"
    assert preset.seeds == (tuple(range(10)) if name.startswith("camelyon17") else (0, 1, 2))
    for arm in preset.arms:
        assert arm.method in METHODS
        assert arm.train.backbone in BACKBONES
        assert arm.train.select_by == "accuracy"
        assert arm.train.patience == arm.train.epochs  # nothing stops before its end
        assert arm.view.normalise not in ("plate", "controls")
        assert preset.arms[0].adapters[0].name == "source"


def test_the_published_recipes():
    camelyon = PRESETS["camelyon17-erm"]().arms[0].train
    assert (camelyon.backbone, camelyon.optimiser) == ("densenet121", "sgd")
    assert (camelyon.lr, camelyon.momentum, camelyon.weight_decay) == (1e-3, 0.9, 1e-2)
    assert (camelyon.num_perturbed, camelyon.accumulate, camelyon.epochs) == (32, 1, 10)
    code, paper = (arm.train for arm in PRESETS["rxrx1-wilds-erm"]().arms)
    assert (code.lr, code.num_perturbed) == (1e-3, 72)
    assert (paper.lr, paper.num_perturbed) == (1e-4, 75)
    for train in (code, paper):
        assert (train.backbone, train.optimiser, train.weight_decay) == ("resnet50", "adam", 1e-5)
        assert (train.epochs, train.schedule) == (90, "cosine")
    assert code.warmup * 90 * (40612 // 72) == pytest.approx(5415, rel=0.05)
    assert paper.warmup * 90 * (40612 // 75) == pytest.approx(5415, rel=0.01)
    groups = {arm.label: arm.train for arm in PRESETS["rxrx1-wilds-baselines"]().arms}
    assert (groups["irm"].num_domains, groups["irm"].distinct_domains) == (9, True)
    assert groups["irm"].num_perturbed // groups["irm"].num_domains == 8
    assert (groups["groupdro"].num_domains, groups["groupdro"].distinct_domains) == (72, False)
    contrimix = PRESETS["camelyon17-contrimix"]().arms[0]
    assert (contrimix.train.epochs, contrimix.train.num_perturbed) == (20, 210)
    assert contrimix.view.normalise == "unit"


def test_names_of_the_command_line():
    assert set(WILDS) <= set(PRESET_NAMES)
    assert set(WILDS) <= set(PRESETS)


def test_weights_reach_every_arm(screens, tmp_path, monkeypatch):
    """`bench --weights`: every backbone starts from the file."""
    path = tmp_path / "weights.pth"
    backbone, _ = build_backbone("cnn-small", 3)
    torch.save(backbone.state_dict(), path)
    preset = WILDS["rxrx1-wilds-erm"]()
    tiny = replace(preset, arms=tuple(map(small, preset.arms)), seeds=(0,), in_domain=False)
    monkeypatch.setitem(PRESETS, "tiny", lambda: tiny)
    out = api.bench("tiny", screens["rxrx1"].folder, tmp_path / "out", weights=path)
    runs = [json.loads(run.read_text()) for run in (out / "runs").glob("*/run.json")]
    assert len(runs) == 2
    assert {run["config"]["train"]["weights"] for run in runs} == {str(path)}
    with pytest.raises(InputError, match="cannot be read as weights"):
        api.bench("tiny", screens["rxrx1"].folder, tmp_path / "o2", weights=tmp_path / "none.pth")
