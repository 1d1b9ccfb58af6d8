"""CDCL's and CODA's presets run: two steps of each training, on a miniature of its data set."""

import re
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
from gallery_miniature import write_gallery, write_tables
from public_miniatures import rxrx1_official

from evenfield import records
from evenfield.bench.grid import Arm, run_grid
from evenfield.bench.presets import PRESETS
from evenfield.bench.presets.cdcl import CDCL, HUVEC, huvec_fold
from evenfield.bench.presets.coda import coda_jump_target2, coda_labs
from evenfield.bench.stream import follow
from evenfield.cli import PRESET_NAMES
from evenfield.config import Crops
from evenfield.data.ingest import ingest
from evenfield.data.process import Process
from evenfield.data.sources import SOURCES
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.train.run import fit
from evenfield.train.setup import prepare_run

pytestmark = pytest.mark.filterwarnings("ignore:pairs by", "ignore:pixels of these")
SMALL = {"num_outputs": 12, "hidden": 16, "bottleneck": 8}


def small(arm: Arm, size: int) -> Arm:
    """The same arm with small networks and crops, one epoch of mini-batches of `size`."""
    crops = replace(arm.view.crops, global_side=16, local_side=8, num_local=2)
    train = replace(arm.train, backbone="cnn-small", num_perturbed=size, epochs=1, patience=1)
    head = SMALL if arm.method in ("dino", "cdcl") else {}
    view = replace(arm.view, crop=None, crops=crops)
    return replace(arm, view=view, train=train, options={**arm.options, **head})


def check_two_steps(name, screen, size, out, **roles):
    preset = PRESETS[name]()
    grid = replace(preset, arms=tuple(small(arm, size) for arm in preset.arms), seeds=(0,))
    steps = []

    def note(item):
        if item.progress:
            steps.append((item.progress.step, item.progress.total))

    run_grid(screen, grid, out, roles=replace(screen.roles, **roles), on_note=note)
    assert set(steps) == {(1, 2), (2, 2)}
    found = [r for r in records.read(out) if r.kind == "value" and r.metric == "accuracy"]
    assert {r.method for r in found} == {arm.label for arm in preset.arms}
    return {r.unit for r in found if r.unit_role == "domain"}


@pytest.fixture(scope="module")
def huvec(tmp_path_factory):
    """All 24 experiments, of which each has 4 wells on 4 plates; one site a well."""
    folder = tmp_path_factory.mktemp("rxrx1")
    turns = {name: number % 4 for number, name in enumerate(HUVEC)}
    rxrx1_official(folder, side=20, experiments=turns, per_group=1)
    config = SOURCES["rxrx1"].Config(
        folder=folder, sites="1", subset="present", exclude_leak=False, check_sizes=False,
        process=Process(resize=(16, 16)),
    )  # fmt: skip
    return ingest("rxrx1", config, folder / "screen", workers=1)


def test_two_steps_of_rxrx1(huvec, tmp_path):
    judged = check_two_steps("cdcl-rxrx1-huvec", huvec, 96, tmp_path / "out")
    assert judged == set(HUVEC[20:])


def test_folds_of_rxrx1():
    for fold in range(1, 7):
        train, validation, test = huvec_fold(fold)
        assert sorted(train + validation + test) == sorted(HUVEC)
        preset = PRESETS["cdcl-rxrx1-huvec" + (f"-{fold}" if fold > 1 else "")]()
        assert preset.folds == (test,)
        assert preset.split.validation == validation
    assert {huvec_fold(fold)[2] for fold in range(1, 7)} == {
        HUVEC[start : start + 4] for start in range(0, 24, 4)
    }
    with pytest.raises(InputError, match="fold 7"):
        huvec_fold(7)


@pytest.fixture(scope="module")
def lincs(tmp_path_factory):
    """A DeepProfiler project of five plates, the replicates 1 to 5 of one layout."""
    root = tmp_path_factory.mktemp("cpg0004")
    config = SOURCES["deepprofiler"].Config
    rng, rows = np.random.default_rng(0), []
    for replicate in range(1, 6):
        for number in range(8):
            line = {
                "Metadata_Plate": f"SQ{replicate}",
                "Metadata_Well": f"B{number + 1:02d}",
                "Metadata_Site": "1",
                "Treatment": ["DMSO", "BRD-1 @ 1", "BRD-2 @ 1", "BRD-3 @ 10"][number % 4],
                "Treatment_Replicate": str(replicate),
            }
            for channel in CHANNELS:
                path = Path(f"SQ{replicate}/{number}-{channel}.png")
                file = root / "inputs" / "images" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                image = rng.integers(0, 250, (20, 20)).astype(np.uint16)
                file.write_bytes(imagecodecs.png_encode(image))
                line[channel] = str(path.with_suffix(".tiff"))  # as in the published table
            rows.append(line)
    (root / "inputs" / "metadata").mkdir()
    pd.DataFrame(rows).to_csv(root / "inputs" / "metadata" / "index.csv", index=False)
    settings = config(
        folder=root, replicate="Treatment_Replicate", treatment="Treatment", label="Treatment",
        process=Process(resize=(16, 16)), channels=CHANNELS,
    )  # fmt: skip
    return ingest("deepprofiler", settings, root / "screen", workers=1)


CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")


def test_two_steps_of_cpg0004(lincs, tmp_path):
    plate = {"domain": "Metadata_Plate", "holdout": "Metadata_Plate"}
    assert check_two_steps("cdcl-cpg0004", lincs, 12, tmp_path / "out", **plate) == {"SQ5"}


def test_the_four_steps_of_coda_on_jump(tmp_path):
    """Two steps each of pretraining, classifier and adaptation, from one laboratory to another."""
    write_gallery(tmp_path / "jump")
    config = SOURCES["jump"].Config(
        folder=str(tmp_path / "jump"), tables=write_tables(tmp_path / "tables"),
        sources=("source_3", "source_8"), channels=("DNA", "AGP", "RNA"), illumination="off",
        check_layout=False, process=Process(crop=8),
    )  # fmt: skip
    screen = ingest("jump", config, tmp_path / "screen", workers=1)
    coda = coda_jump_target2("source_3", "source_8")
    roles = replace(screen.roles, domain=str(coda.roles.domain), holdout=str(coda.roles.holdout))
    crops = Crops(global_side=8, local_side=8, num_local=2, resize=False, brightness=0.005)
    view = replace(coda.pretrain.view, crop=8, crops=crops)
    short = {"backbone": "vit-tiny", "num_perturbed": 2, "epochs": 1, "patience": 1}
    first = replace(coda.pretrain, view=view, options={**coda.pretrain.options, **SMALL},
                    train=replace(coda.pretrain.train, **short))  # fmt: skip
    pretrained = fit(screen, first, tmp_path / "pretrained", roles=roles)
    train = replace(coda.classify.train, weights=tmp_path / "pretrained", **short)
    second = replace(coda.classify, view=view, train=train)
    classifier = fit(screen, second, tmp_path / "classifier", roles=roles)
    plates = screen.manifest["Metadata_Plate"].to_numpy()
    for config in (first, second):
        split = prepare_run(screen, config, roles).split
        assert set(plates[split.validation]) == {"JCPQC016"}
        assert not set(plates[split.train]) & {"JCPQC016", "A1166127"}
    steps = []
    follow(
        pretrained, classifier, screen, tmp_path / "states",
        replace(coda.online, epochs=1, size=2),
        on_progress=lambda name, step, total, parts: steps.append((name, step, total)),
    )  # fmt: skip
    assert steps == [("A1166127", 1, 2), ("A1166127", 2, 2)]
    assert coda.pretrain.split.validation == ("JCPQC016",)


def test_the_published_recipes():
    """Sections 6 and 8 of what is known of the released codes."""
    arm = {arm.label: arm for arm in PRESETS["cdcl-rxrx1-huvec"]().arms}["cdcl"]
    train, made = arm.train, METHODS["cdcl"].Config(**arm.options)
    assert (train.epochs, train.num_perturbed, train.lr, train.clip) == (200, 92, 7e-4, 3.0)
    assert (train.weight_decay, made.weight_decay_end, train.warmup) == (4e-3, 1e-2, 0.05)
    assert (made.hidden, made.bottleneck, made.num_outputs) == (1024, 512, 4096)
    assert (made.momentum_start, made.momentum_end, made.w, made.off_diagonal) == (
        0.995, 0.9996, 0.75, 0.95,
    )  # fmt: skip
    crops = arm.view.crops
    assert (crops.global_side, crops.local_side, crops.shift, crops.shift_p) == (224, 112, 0.1, 0.5)
    coda = coda_jump_target2()
    train, made = coda.pretrain.train, METHODS["dino"].Config(**coda.pretrain.options)
    assert (train.epochs, train.num_perturbed, train.lr, train.clip) == (300, 128, 1e-4, 1.0)
    assert (train.weight_decay, made.weight_decay_end) == (1e-5, 1e-4)
    assert (made.hidden, made.bottleneck, made.num_outputs) == (2048, 256, 4096)
    assert train.select_by == "knn"
    assert train.warmup * 300 == pytest.approx(10)
    assert made.tau_warmup * 300 == pytest.approx(30)
    second = coda.classify.train
    assert (second.epochs, second.schedule, second.select_by) == (50, "constant", "accuracy")
    assert (coda.online.epochs, coda.online.pairs, coda.online.lr) == (300, "plate", None)
    assert (coda.online.anchor, coda.online.stops) == (0.0, False)  # as released
    with pytest.raises(InputError, match="source_4"):
        coda_jump_target2("source_4", "source_5")


@pytest.mark.parametrize("make", [*CDCL.values(), coda_jump_target2, coda_labs])
def test_what_is_promised(make):
    text = getattr(make, "func", make).__doc__
    for wanted in (r"`(evenfield|python benchmarks)", "Expected", "Hours"):
        assert re.search(wanted, text), wanted


def test_names_of_the_command_line():
    assert set(CDCL) <= set(PRESET_NAMES)
    assert set(PRESET_NAMES) == set(PRESETS)
