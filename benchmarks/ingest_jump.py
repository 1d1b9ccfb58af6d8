"""How close the ingest of a JUMP plate comes to decoding its files and nothing else.

    python benchmarks/ingest_jump.py --wells 24 --size 1080 --folder SCRATCH

Writes a part of a plate in the layout of the Cell Painting Gallery (9 sites a well, 5 channels a
site, one 16-bit LZW TIFF each; pixels with the noise of real ones), then in turns decodes every
file with as many threads and throws the pixels away, and ingests them. Prints the ratio of the
medians and what a plate of 384 wells would take, and appends both to
benchmarks/records/ingest_jump.jsonl. At full size the images and the screen take 5 GB together.
"""

from __future__ import annotations

import argparse
import os
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
from evenfield.data.sources import SOURCES
from evenfield.progress import set_quiet
from evenfield.seeds import numpy_generator

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
SITES, PLATE_WELLS = 9, 384
SOURCE, BATCH, PLATE = "source_4", "2021_04_26_Batch1", "BR00117035"
DMSO = "JCP2022_033924"


def write_tables(folder: Path, wells: list[str]) -> None:
    folder.mkdir(parents=True)
    plate = {"Metadata_Source": SOURCE, "Metadata_Batch": BATCH, "Metadata_Plate": PLATE}
    jcps = [DMSO if n % 6 == 0 else f"JCP2022_{n:06d}" for n in range(len(wells))]
    tables = {
        "plate.csv.gz": {**plate, "Metadata_PlateType": ["TARGET2"]},
        "well.csv.gz": {
            "Metadata_Source": SOURCE,
            "Metadata_Plate": PLATE,
            "Metadata_Well": wells,
            "Metadata_JCP2022": jcps,
        },
        "compound.csv.gz": {
            "Metadata_JCP2022": sorted(set(jcps)),
            "Metadata_InChIKey": sorted(set(jcps)),
        },
        "perturbation_control.csv": {"Metadata_JCP2022": [DMSO], "Metadata_pert_type": "negcon"},
    }
    for name, columns in tables.items():
        pd.DataFrame(columns).to_csv(folder / name, index=False)


def write_plate(root: Path, wells: list[str], size: int, workers: int) -> list[Path]:
    """The images and load_data.csv.gz; the functions of illumination are those of a flat field."""
    images = (
        root / f"{SOURCE}/images/{BATCH}/images/{PLATE}__2021-05-02T16_02_51-Measurement1/Images"
    )
    images.mkdir(parents=True)
    rows, paths = [], []
    for number, well in enumerate(wells):
        for site in range(1, SITES + 1):
            row = {"Metadata_Source": SOURCE, "Metadata_Batch": BATCH, "Metadata_Plate": PLATE,
                   "Metadata_Well": well, "Metadata_Site": site}  # fmt: skip
            for channel, name in enumerate(CHANNELS, 1):
                file = (
                    f"r{number // 24 + 1:02d}c{number % 24 + 1:02d}f{site:02d}p01-ch{channel}.tiff"
                )
                row[f"FileName_Orig{name}"] = file
                row[f"PathName_Orig{name}"] = f"{images}/"
                paths.append(images / file)
            rows.append(row)

    def write(number: int) -> None:
        rng = numpy_generator(0, "benchmark", number)
        pixels = rng.poisson(60, (size, size)).astype(np.uint16) * 16
        tifffile.imwrite(paths[number], pixels, compression="lzw")

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(write, range(len(paths))))
    folder = root / f"{SOURCE}/workspace/load_data_csv/{BATCH}/{PLATE}"
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "load_data.csv.gz", index=False)
    light = root / f"{SOURCE}/images/{BATCH}/illum/{PLATE}"
    light.mkdir(parents=True)
    for name in CHANNELS:
        np.save(light / f"{PLATE}_Illum{name}.npy", np.ones((size, size)))
    return paths


def decode_all(paths: list[Path], workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda path: read_image(path, num_channels=1).shape, paths):
            pass


def main(arguments: list[str] | None = None, *, record: bool = True) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wells", type=int, default=24, help="wells of the plate")
    parser.add_argument("--size", type=int, default=1080, help="side of an image in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", help="where the images are written for the time being")
    given = parser.parse_args(arguments)
    set_quiet(True)
    wells = [f"{'ABCDEFGHIJKLMNOP'[n // 24]}{n % 24 + 1:02d}" for n in range(given.wells)]
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        root = Path(name)
        write_tables(root / "metadata", wells)
        paths = write_plate(root / "jump", wells, given.size, given.workers)

        def run(illumination: str) -> None:
            config = SOURCES["jump"].Config(
                folder=str(root / "jump"),
                tables=root / "metadata",
                illumination=illumination,
                check_layout=False,
            )
            ingest("jump", config, root / "screen", workers=given.workers, overwrite=True)

        cases = {"as it is": "off", "published illumination": "require"}
        calls = {case: lambda how=how: run(how) for case, how in cases.items()}
        times = in_turns(
            {"decode": lambda: decode_all(paths, given.workers), **calls}, rounds=given.rounds
        )
    shares = {case: round(1 / ratio(times, case, "decode"), 3) for case in cases}
    plate = {
        case: round(sorted(times[case])[len(times[case]) // 2] * PLATE_WELLS / given.wells, 1)
        for case in cases
    }
    for case, share in shares.items():
        print(
            f"{case:24s} {share:.0%} of the speed of decoding alone; a plate of {PLATE_WELLS} "
            f"wells would take {plate[case] / 60:.1f} minutes with {given.workers} threads"
        )
    if record:
        values = {"wells": given.wells, "sites": SITES, "channels": len(CHANNELS),
                  "side_px": given.size, "workers": given.workers, "ratios": shares,
                  "seconds_of_384_wells": plate}  # fmt: skip
        keep("ingest_jump", values, times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
