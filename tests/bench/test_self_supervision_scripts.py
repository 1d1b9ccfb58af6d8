"""The scripts of the self-supervised tables run in small, go on, and write the tables."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evenfield import records
from evenfield.bench.presets import cdcl, coda
from evenfield.config import Crops
from evenfield.data.simulate import tiny_screen
from evenfield.train.online_config import OnlineConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = {"num_outputs": 12, "hidden": 16, "bottleneck": 8, "freeze_last": 0.0}
CROPS = Crops(global_side=16, local_side=8, num_local=2)
pytestmark = pytest.mark.filterwarnings("ignore:pairs by", "ignore:standardise")


def labs(seed, sources, batches):
    screen = tiny_screen(seed)
    plan = replace(
        screen.layout, num_sources=sources, num_batches=batches, num_plates=1, num_compounds=2,
        replicates=2, num_dmso=4, num_poscon=0,
    )  # fmt: skip
    return replace(screen, layout=plan)


def script(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / name))


def test_self_supervision(tmp_path, monkeypatch, capsys):
    def grid():
        whole = arms()
        return replace(whole, arms=tuple(smaller(arm) for arm in whole.arms))

    def smaller(arm):
        head = SMALL if arm.method in ("dino", "cdcl") else {}
        train = replace(arm.train, epochs=1, num_perturbed=32)
        return replace(
            arm, options=head, view=replace(arm.view, crop=None, crops=CROPS), train=train
        )

    arms = cdcl.cdcl_labs
    monkeypatch.setattr(cdcl, "cdcl_labs", grid)
    monkeypatch.setattr(cdcl, "labs_screen", lambda seed: labs(seed, 6, 2))
    made = script("self_supervision.py", monkeypatch)
    chosen = ["untrained", "dino", "cdcl"]
    made["run"](tmp_path, [5], chosen)
    found = records.read(tmp_path / "labs-5")
    assert {record.method for record in found} == set(chosen)
    units = {record.unit for record in found if record.metric == "knn"}
    assert units == {"s5-b01", "s5-b02", "s6-b01", "s6-b02"}
    assert {record.adapter for record in found} == {"none", "standardise"}
    made["run"](tmp_path, [5], chosen)  # nothing is done twice
    assert len(records.read(tmp_path / "labs-5")) == len(found)
    made["keep"](tmp_path, tmp_path / "kept")
    made["table"](tmp_path / "kept", "dino")
    text = capsys.readouterr().out
    assert "**labs, correction: standardise**" in text
    assert sum(line.startswith("| cdcl |") for line in text.splitlines()) == 2
    knn = [r.value for r in found if (r.metric, r.method, r.adapter) == ("knn", "dino", "none")]
    assert f"| dino | {100 * np.mean(knn):.1f} (" in text
    made["tune"](tmp_path, ["untrained", "cdcl"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| untrained", "0.02", "0.98"],
        *(["| cdcl", f"{tau}", f"{momentum}"] for tau, momentum in made["SETTINGS"]),
    ]


def test_coda_table(tmp_path, monkeypatch, capsys):
    whole = coda.coda_labs()
    view = replace(whole.pretrain.view, crops=CROPS)
    short = {"epochs": 1, "num_perturbed": 8}
    monkeypatch.setattr(coda, "two_labs_screen", lambda seed: labs(seed, 2, 3))
    monkeypatch.setattr(
        coda,
        "coda_labs",
        lambda: replace(
            whole,
            pretrain=replace(whole.pretrain, options=SMALL, view=view,
                             train=replace(whole.pretrain.train, **short)),
            classify=replace(whole.classify, view=view,
                             train=replace(whole.classify.train, **short)),
            online=OnlineConfig(together=True, steps=2, size=8, check_every=2, watched=16),
        ),
    )  # fmt: skip
    made = script("coda_table.py", monkeypatch)
    made["run"](tmp_path, [5], [])
    found = records.read(tmp_path / "labs-5")
    done = {(record.method, record.num_images) for record in found}
    assert done == {
        ("frozen", 0), ("statistics", 0),
        *(("oda", n) for n in (1, 2, 4, 0)), *(("coda", n) for n in (2, 4, 0)),
        *(("again", n) for n in (2, 4, 0)),
        *((name, n) for name in ("long", "long, watched") for n in (1, 0)),
        *((name, 0) for name in ("home, frozen", "home", "home, watched")),
    }  # fmt: skip
    by_state = {}
    for record in found:
        if record.protocol == "new-source":
            by_state.setdefault((record.method, record.num_images), []).append(record)
    assert all(len(judged) == 3 for judged in by_state.values())  # plates of the target
    for (method, number), judged in by_state.items():
        own = sum(record.extra["adapted"] for record in judged)
        expected = {"frozen": 3, "statistics": 3, "again": 0}.get(method, min(number or 3, 3))
        assert own == expected, (method, number)
    inside = next(record for record in found if record.protocol == "in-domain")
    home = [record for record in found if record.method == "home, frozen"]
    assert sum(record.num for record in home) == inside.num  # held-out wells, by plate
    right = sum(record.num * record.value for record in home)
    assert right == pytest.approx(inside.num * inside.value, abs=1e-3)
    assert not {r.unit for r in home} & {r.unit for r in by_state["frozen", 0]}
    made["run"](tmp_path, [5], [])
    assert len(records.read(tmp_path / "labs-5")) == len(found)
    made["keep"](tmp_path, tmp_path / "kept")
    made["table"](tmp_path / "kept")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["seed 5", "seed 5"]
    assert lines[2].startswith("In-domain ")
    assert sum(line.startswith("| coda |") for line in lines) == 3
    assert any(line.startswith("| home, frozen | ") for line in lines)
