import json
import runpy
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import turns

    monkeypatch.setattr(turns, "RECORDS", tmp_path)
    return runpy.run_path(str(BENCHMARKS / "dino_step.py"))


def test_both_steps_are_the_same_step(benchmark):
    """The plain one is our oracle here: equal gradients, teacher and centre in float32."""
    batch = benchmark["random_batch"](3, 32, 16)
    ours, plain = (benchmark["build"]("vit-tiny", 32).train() for _ in range(2))
    benchmark["our_step"](ours, batch, None)()
    benchmark["plain_step"](plain, batch)()
    pairs = zip(ours.networks.named_parameters(), plain.networks.parameters(), strict=True)
    compared = 0
    for (name, one), two in pairs:
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-6, msg=name)
            compared += 1
        else:
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5, msg=name)
    assert compared > 50
    torch.testing.assert_close(ours.centre, plain.centre, rtol=1e-3, atol=1e-6)


def test_the_benchmark_runs_in_small(benchmark, tmp_path, capsys):
    small = "--backbone vit-tiny --batch 2 --global-side 32 --local-side 16 --outputs 16"
    benchmark["main"]([*small.split(), "--rows", "2000", "--size", "8", "--rounds", "1"])
    step, pairs = map(json.loads, capsys.readouterr().out.splitlines())
    assert step["ratio"] > 0
    assert set(pairs["ms_a_batch"]) == {"pairs", "pairs, other positions", "anchors alone"}
    assert len((tmp_path / "dino_step.jsonl").read_text().splitlines()) == 2
