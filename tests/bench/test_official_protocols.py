"""Protocols of public benchmarks, on miniatures of their exact layouts."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from public_miniatures import wilds_camelyon17, wilds_rxrx1

from evenfield import api, records
from evenfield.bench.grid import AdapterChoice, Arm, GridConfig, run_grid
from evenfield.bench.rules import reads_target
from evenfield.cli import run
from evenfield.config import SplitConfig, TrainConfig, View
from evenfield.data.ingest import ingest
from evenfield.data.sources import SOURCES
from evenfield.errors import EvenfieldWarning, InputError

SPLIT = SplitConfig(column="Metadata_Split")
TRAIN = TrainConfig(num_perturbed=12, accumulate=1, epochs=1)


def screen_of(name, write, folder):
    table = write(folder / "download")
    config = SOURCES[name].Config(folder=folder / "download", check_sizes=False)
    return ingest(name, config, folder / "screen", workers=1), table


@pytest.fixture(scope="module")
def rxrx1(tmp_path_factory):
    return screen_of("wilds-rxrx1", wilds_rxrx1, tmp_path_factory.mktemp("r"))


@pytest.fixture(scope="module")
def camelyon(tmp_path_factory):
    return screen_of("wilds-camelyon17", wilds_camelyon17, tmp_path_factory.mktemp("c"))


def grid(**settings):
    arm = Arm(
        label="erm",
        method="erm",
        train=TRAIN,
        view=View(normalise="image"),
        adapters=(AdapterChoice(name="source", pictures=True), AdapterChoice(name="batch")),
    )
    return GridConfig(**{"arms": (arm,), "split": SPLIT, "seeds": (0,), **settings})


@pytest.fixture(scope="module")
def results(rxrx1, tmp_path_factory):
    screen, _ = rxrx1
    return run_grid(screen, grid(rules="wilds"), tmp_path_factory.mktemp("g") / "out")


def official_split(table):
    held = (table.dataset == "train") & (table.site == 2)
    return table.dataset.where(~held, "id_test")


def test_one_fold_the_test_units_of_the_column(rxrx1, results):
    _, table = rxrx1
    split = official_split(table)
    found = [r for r in records.read(results) if r.kind == "value" and r.adapter == "source"]
    assert {r.fold for r in found} == {"HEPG2-09+U2OS-05"}
    for protocol, word in (("new-batch", "test"), ("in-domain", "id_test")):
        mine = [r for r in found if r.protocol == protocol and r.level == "image"]
        units = {r.unit for r in mine if r.unit_role == "domain"}
        assert units == set(table.experiment[split == word])
        (total,) = {r.num for r in mine if r.unit_role == "all"}
        assert total == (split == word).sum()


def test_what_reads_the_test_plates_is_another_track(results):
    found = [r for r in records.read(results) if r.kind == "value"]
    assert {r.protocol for r in found if r.adapter == "source"} == {"new-batch", "in-domain"}
    assert {r.protocol for r in found if r.adapter == "batch"} == {
        "new-batch (transductive)",
        "in-domain (transductive)",
    }
    rows = api.results(results)
    for row in rows:
        if "transductive" in row.protocol:
            assert row.gain is None
            assert row.gap_closed is None
    page = api.report(results).read_text()
    assert "transductive" in page
    kinds = [r for r in records.read(results) if r.metric == "embedding"]
    assert [r.protocol for r in kinds] == ["new-batch"]


def test_open_rules_keep_one_track(rxrx1, results, tmp_path):
    screen, _ = rxrx1
    out = run_grid(screen, grid(), tmp_path / "open")
    found = records.read(out)
    assert {r.protocol for r in found if r.kind == "value"} == {"new-batch", "in-domain"}
    # The mark is a name: the numbers are the same.
    marked = {
        (r.adapter, r.protocol.split(" ")[0], r.metric, r.level, r.unit): r.value
        for r in records.read(results)
    }
    for r in found:
        if r.kind == "value":
            assert marked[r.adapter, r.protocol, r.metric, r.level, r.unit] == r.value


def test_official_scores_equal_loops_over_the_predictions(rxrx1, results):
    screen, _ = rxrx1
    cell_type = screen.manifest.set_index(["Metadata_Plate", "Metadata_Well", "Metadata_Site"])
    found = records.read(results)
    for protocol in ("new-batch", "in-domain"):
        (file,) = [
            r for r in found
            if (r.metric, r.protocol, r.adapter) == ("predictions", protocol, "source")
        ]  # fmt: skip
        table = pd.read_parquet(results / file.path)
        key = table[["Metadata_Plate", "Metadata_Well", "Metadata_Site"]].apply(tuple, axis=1)
        group = [cell_type.loc[k, "Metadata_CellType"] for k in key]
        right = (table.label == table.predicted).groupby(group).mean()
        values = {
            (r.metric, r.unit): r.value
            for r in found
            if (r.protocol, r.adapter) == (protocol, "source") and r.metric.startswith("acc_")
        }
        assert values["acc_avg", "all"] == pytest.approx((table.label == table.predicted).mean())
        assert values["acc_wg", "all"] == pytest.approx(right.min())
        assert {u: v for (m, u), v in values.items() if u != "all"} == pytest.approx(dict(right))
    (row,) = [r for r in api.results(results, metric="acc_wg") if r.protocol == "new-batch"]
    assert (row.units, row.num_units) == ("fold", 1)


def test_an_oracle_is_marked_everywhere(rxrx1, tmp_path):
    screen, _ = rxrx1
    split = SplitConfig(column="Metadata_Split", select_on="oracle")
    out = run_grid(screen, grid(split=split, rules="wilds"), tmp_path / "g")
    protocols = {r.protocol for r in records.read(out) if r.kind == "value"}
    assert protocols == {
        "new-batch (oracle selection)",
        "in-domain (oracle selection)",
        "new-batch (transductive) (oracle selection)",
        "in-domain (transductive) (oracle selection)",
    }
    assert "no honest number" in api.report(out).read_text()
    (folder,) = (out / "runs").iterdir()
    rows = api.evaluate(folder, screen.folder, tmp_path / "e", adapters=("source",))
    assert {r.protocol for r in rows} == {
        "new-batch (oracle selection)", "in-domain (oracle selection)",
    }  # fmt: skip


def test_a_view_that_normalises_by_plate_reads_the_test_plate():
    from evenfield.profile.plates import make_adapter

    source, controls = make_adapter("source"), make_adapter("controls")
    assert not reads_target(source, View(normalise="image"))
    assert not reads_target(source, View(normalise="dataset"))
    assert reads_target(source, View(normalise="plate"))
    assert reads_target(source, View(normalise="controls"))
    assert reads_target(controls, View(normalise="image"))


def test_a_column_and_folds_contradict_each_other(rxrx1, tmp_path):
    screen, _ = rxrx1
    with pytest.raises(InputError, match="the folds name units, but the column Metadata_Split"):
        run_grid(screen, grid(folds=(("U2OS-05",),)), tmp_path / "g")
    with pytest.raises(InputError, match="holds 'HEPG2', which is no part of a split"):
        run_grid(screen, grid(split=SplitConfig(column="Metadata_CellType")), tmp_path / "g")


def test_predictions_for_the_leaderboard(rxrx1, tmp_path, monkeypatch, capsys):
    screen, table = rxrx1
    monkeypatch.chdir(tmp_path)
    line = ["train", "erm", str(screen.folder), "run", "--split.column", "Metadata_Split"]
    assert run([*line, "--train.num-perturbed", "12", "--train.accumulate", "1",
                "--train.epochs", "1", "--train.seed", "7", "-q"]) == 0  # fmt: skip
    predict = ["predict", "run", str(screen.folder), "--layout", "wilds"]
    for out in ("one", "two"):
        assert run([*predict[:3], out, *predict[3:]]) == 0, capsys.readouterr().err
    split = official_split(table)
    names = {
        f"rxrx1_split:{word}_seed:7_epoch:best_pred.csv" for word in ("val", "test", "id_test")
    }
    assert {path.name for path in Path("one").iterdir()} == names
    assert run(["evaluate", "run", str(screen.folder), "e", "--adapters", "source", "-q"]) == 0
    official = {
        (r.protocol, r.metric): r.value
        for r in records.read(Path("e"))
        if r.metric.startswith("acc_") and r.unit == "all"
    }
    assert run(["evaluate", "run", str(screen.folder), "t", "--adapters", "batch", "-q"]) == 0
    tracks = {r.protocol for r in records.read(Path("t"))}
    assert tracks == {"new-batch (transductive)", "in-domain (transductive)"}
    for word, protocol in (("test", "new-batch"), ("id_test", "in-domain")):
        name = f"rxrx1_split:{word}_seed:7_epoch:best_pred.csv"
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
        predicted = np.array([int(text) for text in Path("one", name).read_text().splitlines()])
        subset = table[split == word]  # WILDS' subset order: that of metadata.csv
        right = pd.Series(predicted == subset.sirna_id.to_numpy())
        by_cell = right.groupby(subset.cell_type.to_numpy()).mean()
        assert official[protocol, "acc_avg"] == pytest.approx(right.mean())
        assert official[protocol, "acc_wg"] == pytest.approx(by_cell.min())
    with pytest.warns(EvenfieldWarning, match="batch on dataset-normalised images reads the new"):
        api.predict("run", screen.folder, "three", layout="wilds", adapter="batch")
    with pytest.raises(InputError, match="without adapted states"):
        api.predict("run", screen.folder, "four", layout="wilds", level="well")


def test_camelyon_by_slide_and_in_order(camelyon, tmp_path):
    screen, table = camelyon
    out = api.train("erm", screen.folder, tmp_path / "run", split=SPLIT, train=TRAIN)
    written = api.predict(out, screen.folder, tmp_path / "p", layout="wilds")
    assert written["split"].tolist() == ["id_val", "test", "val"]
    assert written["num"].tolist() == [12, 16, 16]
    api.evaluate(out, screen.folder, tmp_path / "e", adapters=("source",))
    (path,) = written["file"][written["split"] == "test"]
    predicted = np.loadtxt(path, dtype=int)
    test = table[table.center == 2]
    by_slide = pd.Series(predicted == test.tumor.to_numpy()).groupby(test.slide.to_numpy()).mean()
    found = {
        (r.metric, r.unit): r.value
        for r in records.read(tmp_path / "e")
        if r.protocol == "new-batch" and r.metric.startswith("acc_")
    }
    assert found["acc_wg", "all"] == pytest.approx(by_slide.min())
    assert found["acc_avg", "slide20"] == pytest.approx(by_slide[20])


def test_screens_that_are_not_of_wilds_or_have_controls(rxrx1, tiny, tmp_path):
    screen, _ = rxrx1
    run_of = api.train("erm", tiny.folder, tmp_path / "t", train=TRAIN,
                       split=SplitConfig(test=("b04",), select_on="wells"))  # fmt: skip
    with pytest.raises(InputError, match="is no screen of a WILDS data set"):
        api.predict(run_of, tiny.folder, tmp_path / "p", layout="wilds")
    reader = SOURCES["wilds-rxrx1"]
    source = json.loads((screen.folder / "screen.json").read_text())["provenance"]["settings"]
    config = reader.Config(
        folder=Path(source["folder"]), check_sizes=False, negative_is_class=False
    )
    controls = ingest("wilds-rxrx1", config, tmp_path / "s", workers=1)
    out = api.train("erm", controls.folder, tmp_path / "run", split=SPLIT, train=TRAIN)
    with pytest.raises(InputError, match="negative controls, which are not predicted"):
        api.predict(out, controls.folder, tmp_path / "q", layout="wilds")
