"""Measure alternatives in turns, in one process, and append what came out to a file of records."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np
import torch

import evenfield

RECORDS = Path(__file__).parent / "records"


def in_turns(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one round that warms up.

    Calls alternate, so that a machine that slows down does so for all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, list[float]], ours: str, plain: str) -> float:
    """Median over the rounds of the ratio of two calls that followed each other."""
    return median(a / b for a, b in zip(times[ours], times[plain], strict=True))


def keep(benchmark: str, values: Mapping[str, object], times: Mapping[str, list[float]]) -> None:
    """Append one line with results, medians in seconds, versions and the machine's size."""
    line = {
        "benchmark": benchmark,
        **values,
        "seconds": {name: round(median(t), 6) for name, t in times.items()},
        "rounds": len(next(iter(times.values()))),
        "threads": torch.get_num_threads(),
        "num_cpus": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            "evenfield": evenfield.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    RECORDS.mkdir(exist_ok=True)
    with open(RECORDS / f"{benchmark}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
