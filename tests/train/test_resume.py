"""A resumed run equals an uninterrupted one, bit for bit; a kill loses one interval at most."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evenfield.config import RunConfig, SplitConfig, TrainConfig
from evenfield.errors import InputError, StorageError
from evenfield.train import checkpoint
from evenfield.train.run import fit

CONFIG = RunConfig(
    method="cs-arm-bn",
    split=SplitConfig(test=("b04",), select_on="wells"),
    train=TrainConfig(
        num_perturbed=8, num_controls=4, accumulate=2, epochs=3, patience=9, checkpoint_seconds=0.0
    ),
)


class Stop(Exception):
    pass


def weights(folder):
    return checkpoint.load(folder / "last.pt")["method"]


def test_resumed_equals_uninterrupted(tiny, tmp_path):
    fit(tiny, CONFIG, tmp_path / "whole")

    def stop(note):
        if note.step == 7:
            raise Stop

    with pytest.raises(Stop):
        fit(tiny, CONFIG, tmp_path / "halves", on_progress=stop)
    assert not checkpoint.load(tmp_path / "halves/best.pt").get("finished")
    fit(tiny, CONFIG, tmp_path / "halves")
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
    histories = [(tmp_path / n / "history.jsonl").read_text() for n in ("whole", "halves")]
    assert histories[0] == histories[1]


def test_same_seed_same_weights_other_seed_others(tiny, tmp_path):
    config = replace(CONFIG, train=replace(CONFIG.train, epochs=1))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(tiny, replace(config, train=replace(config.train, seed=seed)), tmp_path / name)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_finished_run_is_returned_as_it_is(tiny, tmp_path):
    config = replace(CONFIG, train=replace(CONFIG.train, epochs=1))
    fit(tiny, config, tmp_path / "run")
    before = (tmp_path / "run/best.pt").stat().st_mtime_ns
    fit(tiny, config, tmp_path / "run", on_progress=lambda note: pytest.fail("trained again"))
    assert (tmp_path / "run/best.pt").stat().st_mtime_ns == before


def test_another_run_is_refused(tiny, tmp_path):
    config = replace(CONFIG, train=replace(CONFIG.train, epochs=1))
    fit(tiny, config, tmp_path / "run")
    with pytest.raises(InputError, match="holds another run"):
        fit(tiny, replace(config, method="erm"), tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and holds something else"):
        fit(tiny, config, tmp_path / "full")


def test_patience_stops_and_the_best_weights_are_kept(tiny, tmp_path):
    config = replace(
        CONFIG, train=replace(CONFIG.train, lr=0.3, epochs=30, patience=2, accumulate=1)
    )
    fit(tiny, config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/history.jsonl").open()]
    values = [line["validation"] for line in lines]
    best = min(range(len(values)), key=values.__getitem__)
    assert len(values) == best + 1 + 2 < 30
    state = checkpoint.load(tmp_path / "run/best.pt")["state"]
    assert state["best"] == values[best]
    assert state["step"] == lines[best]["step"]


def test_kill_minus_nine_at_any_moment(tiny, tmp_path):
    """The process is killed while it trains; what is left is whole, and the run goes on."""
    script = (
        "import sys; from pathlib import Path; from test_resume import CONFIG\n"
        "from evenfield.data.store import Screen; from evenfield.train.run import fit\n"
        "fit(Screen.open(Path(sys.argv[1])), CONFIG, Path(sys.argv[2]),"
        " on_progress=lambda note: print(note.step, flush=True))"
    )
    here = Path(__file__).parent
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny.folder), str(out)],
        cwd=here.parents[1],
        env={**os.environ, "PYTHONPATH": str(here)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 5:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    seen = checkpoint.load(out / "last.pt")["state"]["step"]
    assert seen >= 4  # one interval (here: a step) may be lost
    fit(tiny, CONFIG, out)
    fit(tiny, CONFIG, tmp_path / "whole")
    one, two = weights(out), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"schema": checkpoint.SCHEMA, "x": torch.ones(3)})
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="No space left on device"):
        checkpoint.save(path, {"schema": checkpoint.SCHEMA})
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]
