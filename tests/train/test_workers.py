"""Two processes train what one process trains."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evenfield.config import RunConfig, SplitConfig, TrainConfig
from evenfield.errors import InputError
from evenfield.methods import METHODS
from evenfield.train import checkpoint
from evenfield.train.fish import check_fish
from evenfield.train.run import fit
from evenfield.train.workers import Workers

CONFIG = RunConfig(
    method="coral",
    split=SplitConfig(test=("b04",), validation=("b03",)),
    train=TrainConfig(
        num_perturbed=16, num_domains=2, accumulate=2, epochs=2, optimiser="sgd", clip=0.5,
        precision="float32", lr=1e-2, checkpoint_seconds=0.0,
    ),
)  # fmt: skip

SCRIPT = """
import sys
from pathlib import Path
from test_workers import CONFIG
from evenfield.data.store import Screen
from evenfield.train.run import fit

fit(Screen.open(Path(sys.argv[1])), CONFIG, Path(sys.argv[2]))
"""


def launch(screen, out, *, num=2):
    """Start the processes as `torchrun` does; their exit codes and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    started = []
    for rank in range(num):
        env = {
            "PYTHONPATH": str(here), "WORLD_SIZE": str(num), "RANK": str(rank),
            "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, "-c", SCRIPT, str(screen.folder), str(out)]
        started.append(
            subprocess.Popen(
                command,
                cwd=here.parents[1],
                env={**os.environ, **env},
                stderr=subprocess.PIPE,
            )
        )
    errors = [process.communicate(timeout=300)[1].decode() for process in started]
    return [process.returncode for process in started], errors


def test_two_processes_take_the_steps_of_one(tiny, tmp_path):
    codes, errors = launch(tiny, tmp_path / "two")
    assert codes == [0, 0], errors
    fit(tiny, CONFIG, tmp_path / "one")
    one, two = (checkpoint.load(tmp_path / name / "last.pt") for name in ("one", "two"))
    assert one["state"]["step"] == two["state"]["step"] == 4
    weights = [name for name in one["method"] if name.endswith((".weight", ".bias"))]
    assert weights
    for name in weights:
        torch.testing.assert_close(one["method"][name], two["method"][name], rtol=1e-3, atol=1e-5)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").open()]
        for name in ("one", "two")
    ]
    assert len(lines[0]) == len(lines[1]) == 2  # the first process alone writes
    for a, b in zip(*lines, strict=True):
        assert a["step"] == b["step"]
        assert a["losses"]["risk"] == pytest.approx(b["losses"]["risk"], rel=1e-2)
    assert checkpoint.load(tmp_path / "two/best.pt")["finished"]


def test_what_cannot_be_dealt_out_is_named(backbone):
    assert Workers(rank=1, num=4).share(8) == 2
    with pytest.raises(InputError, match="3 passes a step cannot be dealt out to 2 processes"):
        Workers(num=2).share(3)
    cls = METHODS["erm"]
    method = cls(cls.Config(), backbone=backbone, d=4, k=3, c=3)
    with pytest.raises(InputError, match="cannot be dealt out to 2 processes"):
        check_fish(method, 0.5, num_workers=2)


def test_one_process_alone_changes_nothing(backbone):
    alone = Workers()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    alone.sum_gradients(list(backbone.parameters()))
    alone.merge_buffers(backbone)
    assert all(torch.equal(before[n], t) for n, t in backbone.state_dict().items())
    assert all(weight.grad is None for weight in backbone.parameters())
    assert alone.gather(7) == [7]
    assert alone.from_first(lambda: "made") == "made"
