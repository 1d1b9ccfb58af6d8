"""How fast are random crops read from a memory-mapped screen, against plain slicing of the map?

    python benchmarks/read_crops.py [--fields 40] [--batch 64] [--crops 1024] [--rounds 7]

Fields of 5 x 1080 x 1080 pixels in uint16, crops of 224 x 224, page cache warm (all pages are read
once before). `slicing` cuts each crop out of the map and copies it; `ours` is
`evenfield.data.transforms.read` in batches; `reused` gives it one batch to write into; `copy` is
the machine's limit, a copy of as many contiguous bytes. The goal is 0.60 of slicing's speed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from turns import in_turns, keep, ratio

from evenfield.config import View
from evenfield.data.transforms import read
from evenfield.seeds import numpy_generator


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="Speed of random crops.")
    parser.add_argument("--fields", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--crops", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    side, channels, field = 224, 5, 1080
    random = numpy_generator(0, "benchmark", "read crops")
    rows = random.integers(0, given.fields, given.crops)
    tops, lefts = random.integers(0, field - side + 1, (2, given.crops))
    view = View(crop=side)
    batches = [rows[start : start + given.batch] for start in range(0, given.crops, given.batch)]
    buffer = np.empty((given.batch, channels, side, side), np.uint16)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.npy"
        shape = (given.fields, channels, field, field)
        made = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=shape)
        for index in range(given.fields):
            made[index] = random.integers(0, 65536, shape[1:], dtype=np.uint16)
        made.flush()
        del made
        pixels = np.load(path, mmap_mode="r")
        total = int(sum(int(part.max()) for part in pixels))  # every page is in memory now
        assert total > 0

        def slicing() -> None:
            for row, top, left in zip(rows, tops, lefts, strict=True):
                np.array(pixels[row, :, top : top + side, left : left + side])

        def ours() -> None:
            for seed, part in enumerate(batches):
                read(pixels, part, view, seed=seed, train=True)

        def reused() -> None:
            for seed, part in enumerate(batches):
                read(pixels, part, view, seed=seed, train=True, out=buffer)

        def copy() -> None:
            source = pixels[0].reshape(-1)[: channels * side * side].reshape(buffer.shape[1:])
            for index in range(given.crops):
                np.copyto(buffer[index % given.batch], source)

        calls = {"slicing": slicing, "ours": ours, "reused": reused, "copy": copy}
        times = in_turns(calls, rounds=given.rounds)
    speeds = {name: round(1 / ratio(times, name, "slicing"), 3) for name in calls}
    for name, speed in speeds.items():
        print(f"{name:8s} {given.crops / min(times[name]):9.0f} crops/s  {speed:.2f} of slicing")
    keep("read_crops", {"speed_of_slicing": speeds, **vars(given)}, times)


if __name__ == "__main__":
    main()
