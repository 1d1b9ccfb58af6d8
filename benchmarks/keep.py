"""What is committed of a results folder: values by held-out domain at the level of the image.

    python benchmarks/keep.py RESULTS benchmarks/records/NAME accuracy [balanced_accuracy ...]

Values by plate, of wells, of the other metrics, and the artifacts stay behind: `evenfield results`
and `benchmarks/context_grid.py` give the same tables for what is kept.
"""

import sys
from dataclasses import replace
from pathlib import Path

from evenfield.records import append, read


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
