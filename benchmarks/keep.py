"""What is committed of a results folder: values by held-out domain at the level of the image.

    python benchmarks/keep.py RESULTS benchmarks/records/NAME accuracy [balanced_accuracy ...]

Values by plate, of wells, of the other metrics, and the artifacts stay behind: `evenfield results`
and `benchmarks/context_grid.py` give the same tables for what is kept.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evenfield.records import Record, append, read

Kept = Callable[[Record, str, str], Record | None]
"""What is committed of a record of the screen of a kind and seed; None: nothing."""


def of_screens(out: Path, target: Path, kept: Kept) -> None:
    """The records of all folders KIND-SEED of `out` in one file; an older one is replaced."""
    (target / "records.jsonl").unlink(missing_ok=True)
    for folder in sorted(path.parent for path in out.glob("*-*/records.jsonl")):
        kind, seed = folder.name.rsplit("-", 1)
        found = (kept(record, kind, seed) for record in read(folder))
        append(target, [record for record in found if record is not None])


def main(source: Path, target: Path, metrics: set[str]) -> None:
    (target / "records.jsonl").unlink(missing_ok=True)
    kept = [
        replace(record, value=round(record.value, 6), versions={}, extra={}, config="")
        for record in read(source)
        if record.kind == "value"
        and record.value is not None
        and (record.level, record.unit_role) == ("image", "domain")
        and record.metric in metrics
    ]
    append(target, kept)
    print(f"{target}: {len(kept)} records")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), set(sys.argv[3:]))
