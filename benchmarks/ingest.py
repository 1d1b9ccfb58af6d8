"""How close ingest comes to the machine's limit, which is decoding the files and nothing else.

    python benchmarks/ingest.py

Writes simulated plates (five channels, one deflate TIFF each) into a temporary folder, then in
turns decodes every file with as many threads and throws the pixels away, and ingests them. Prints
the ratio of the medians and appends it to benchmarks/records/ingest.jsonl.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from turns import in_turns, keep, ratio

from evenfield.data.decode import read_image
from evenfield.data.ingest import ingest
from evenfield.data.process import Process
from evenfield.data.sources import SOURCES
from evenfield.progress import set_quiet
from evenfield.seeds import numpy_generator

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
SIDE, NUM_FIELDS, NUM_WORKERS, ROUNDS = 540, 48, 2, 5
CASES = {
    "16 bit as it is": Process(),
    "16 bit, shrunk by 2": Process(resize=(SIDE // 2, SIDE // 2)),
    "percentile 8 bit": Process(eight_bit="deepprofiler"),
}


def write_plates(folder: Path) -> list[Path]:
    """Fields with the noise of real ones (they compress to about 0.7), and their table."""
    rng = numpy_generator(0, "benchmark")
    paths, rows = [], []
    for field in range(NUM_FIELDS):
        well, site = f"{'ABCD'[field // 12]}{field // 4 % 3 + 1:02d}", field % 4 + 1
        rows.append({"Metadata_Plate": "P1", "Metadata_Well": well, "Metadata_Site": site})
        for channel in CHANNELS:
            paths.append(folder / f"{well}_{site}_{channel}.tif")
            pixels = rng.poisson(60, (SIDE, SIDE)).astype(np.uint16) * 16
            tifffile.imwrite(paths[-1], pixels, compression="deflate")
    pd.DataFrame(rows).to_csv(folder / "index.csv", index=False)
    return paths


def decode_all(paths: list[Path]) -> None:
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        for _ in pool.map(lambda path: read_image(path, num_channels=1).shape, paths):
            pass


def ingest_all(folder: Path, out: Path, process: Process) -> None:
    config = SOURCES["table"].Config(
        table=folder / "index.csv",
        channels=CHANNELS,
        template="{Metadata_Well}_{Metadata_Site}_{channel}.tif",
        process=process,
    )
    ingest("table", config, out, workers=NUM_WORKERS, overwrite=True)


def main() -> int:
    set_quiet(True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_plates(folder)
        times = in_turns(
            {
                "decode": lambda: decode_all(paths),
                **{
                    case: lambda process=process: ingest_all(folder, folder / "screen", process)
                    for case, process in CASES.items()
                },
            },
            rounds=ROUNDS,
        )
    ratios = {case: round(1 / ratio(times, case, "decode"), 3) for case in CASES}
    for case, share in ratios.items():
        print(f"{case:22s} ingest runs at {share:.0%} of the speed of decoding alone")
    values = {"fields": NUM_FIELDS, "channels": len(CHANNELS), "side_px": SIDE}
    keep("ingest", {**values, "workers": NUM_WORKERS, "ratios": ratios}, times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
