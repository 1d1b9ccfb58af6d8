"""Robust methods on unseen simulated batches, by kind of batch effect.

    python benchmarks/robust.py run OUT [--kinds stain optics cells all] [--seeds 0 1 2]
        [--arms erm "abra[image]"] [--preset robust]
    python benchmarks/robust.py table benchmarks/records/robust

`run` simulates one screen for each kind and seed (the seed of the screen is the seed of the
training, so that the held-out batches of three seeds are different batches), trains the arms of the
preset `robust`, and judges them on the four held-out batches without any adaptation; it goes on
where it was stopped. `keep` puts what is committed into benchmarks/records/robust. `table` prints
Markdown: means over held-out batches of all seeds, and paired differences with bootstrap intervals
over these batches.
"""

import argparse
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from keep import of_screens
from tables import span

from evenfield import api
from evenfield.bench.grid import run_grid
from evenfield.bench.presets.robust import ROBUST
from evenfield.metrics.bootstrap import interval, paired_interval
from evenfield.records import Record, read

KINDS = ("stain", "optics", "cells", "all")
RECORDS = Path(__file__).parent / "records" / "robust"


def run(out: Path, kinds: list[str], seeds: list[int], preset: str, arms: list[str]) -> None:
    whole = ROBUST[preset]()
    chosen = tuple(arm for arm in whole.arms if not arms or arm.label in arms)
    for seed in seeds or whole.seeds:
        for kind in kinds:
            screen = out / "screens" / f"{kind}-{seed}"
            if not screen.exists():
                api.simulate(screen, preset=f"effect-{kind}", seed=seed)
            grid = replace(whole, arms=chosen, seeds=(seed,))
            run_grid(api.open_screen(screen), grid, out / f"{kind}-{seed}")


def kept(record: Record, kind: str, seed: str) -> Record | None:
    """Values by held-out batch; the unit's name holds the screen, the fold its kind."""
    where = (record.kind, record.level, record.unit_role, record.metric)
    if record.value is None or where != ("value", "image", "domain", "accuracy"):
        return None
    return replace(record, fold=kind, unit=f"{seed}:{record.unit}", value=round(record.value, 6),
                   versions={}, extra={}, config="")  # fmt: skip


keep = partial(of_screens, kept=kept)


def table(target: Path, yardsticks: list[str]) -> None:
    values: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    order: list[str] = []
    for record in read(target):
        if record.value is None:
            continue
        values[record.fold, record.protocol, record.method][record.unit] = record.value
        if record.method not in order:
            order.append(record.method)
    for kind in [kind for kind in KINDS if any(key[0] == kind for key in values)]:
        print(f"\n**{kind}**\n")
        print("| trained | in-domain | new batches | 95 % interval | "
              + " | ".join(f"minus {name}" for name in yardsticks) + " | batches |")  # fmt: skip
        print("| --- " * (5 + len(yardsticks)) + "|")
        for method in order:
            new = values.get((kind, "new-batch", method))
            if not new:
                continue
            old = values[kind, "in-domain", method]
            mean = interval(np.array([*new.values()]), np.array([*new]))
            cells = [method, f"{100 * np.mean([*old.values()]):.1f}", f"{100 * mean.mean:.1f}",
                     span(mean.low, mean.high, "")]  # fmt: skip
            for name in yardsticks:
                other = values.get((kind, "new-batch", name), {})
                both = [unit for unit in new if unit in other]
                if name == method or not both:
                    cells.append("–")
                    continue
                gap = paired_interval(
                    np.array([new[unit] for unit in both]),
                    np.array([other[unit] for unit in both]),
                    np.array(both),
                )
                cells.append(f"{100 * gap.mean:+.1f} ({span(gap.low, gap.high, '+')})")
            print("| " + " | ".join([*cells, str(len(new))]) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "keep", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="the preset's by default")
    parser.add_argument("--preset", default="robust", choices=list(ROBUST))
    parser.add_argument("--arms", nargs="+", default=[], help="labels; all by default")
    parser.add_argument("--target", type=Path, default=RECORDS)
    parser.add_argument("--yardsticks", nargs="+", default=["erm", "erm[compute, colour]"])
    given = parser.parse_args()
    if given.what == "run":
        run(given.folder, given.kinds, given.seeds, given.preset, given.arms)
    elif given.what == "keep":
        keep(given.folder, given.target)
    else:
        table(given.folder, given.yardsticks)
