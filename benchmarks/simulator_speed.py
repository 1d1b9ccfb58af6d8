"""How many fields a second the simulator draws and writes.

    python benchmarks/simulator_speed.py [cpu|cuda]

Writes the demo screen (64 px, 5 channels) into a temporary folder with one thread for each
processor, and draws it in memory with one thread. Appends to
benchmarks/records/simulator_speed.jsonl.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from turns import keep

from evenfield.data.simulate import demo_screen, effects, layout, render, simulate
from evenfield.progress import set_quiet

ROUNDS = 3


def main(device: str) -> None:
    set_quiet(True)
    config = demo_screen()
    table, known = layout(config), effects(config)
    render(config, table, known, slice(0, 64), device)
    written, drawn, processor = [], [], []
    threads = torch.get_num_threads()
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            simulate(config, Path(folder) / "screen", device=device)
            written.append(len(table) / (time.perf_counter() - start))
        torch.set_num_threads(1)
        start, busy = time.perf_counter(), time.process_time()
        render(config, table, known, slice(0, 1024), device).cpu()
        drawn.append(1024 / (time.perf_counter() - start))
        processor.append(1024 / (time.process_time() - busy))
        torch.set_num_threads(threads)
    best = {
        "simulate, fields/s": round(max(written)),
        "render on one thread, fields/s": round(max(drawn)),
        "render, fields per second of processor time": round(max(processor)),
    }
    for name, value in best.items():
        print(f"{name}: {value}")
    seconds = {"demo screen": [len(table) / rate for rate in written]}
    keep("simulator_speed", {"fields": len(table), "device": device, "best": best}, seconds)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
