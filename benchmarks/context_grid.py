"""Is `context` safe everywhere? Its paired difference to the best plain rule, point by point.

    evenfield simulate grid --preset grid
    evenfield bench regimes grid regimes
    python benchmarks/context_grid.py regimes        # or benchmarks/records/regimes, as committed

The best of {source, batch, controls, union} is chosen with hindsight, by its mean over seeds and
test batches at that very point (without controls the yardstick is `source`). Differences are on the
same images; the interval is a bootstrap over the four test batches of the mean over seeds.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from evenfield.metrics.bootstrap import paired_interval
from evenfield.records import read

PLAIN = ("source", "batch", "controls", "union")


def main(folder: Path) -> None:
    cells = defaultdict(dict)
    counted = defaultdict(int)
    for record in read(folder):
        wanted = (record.metric, record.level, record.unit_role) == ("accuracy", "image", "domain")
        if not wanted or record.protocol != "new-batch" or record.num_images is None:
            continue
        point = (record.method, record.num_images, record.num_controls, record.alpha)
        cells[point].setdefault(record.adapter, {})[record.unit, record.seed] = record.value
        counted[point, record.adapter, record.seed] += record.num
    missed, total = [], 0
    print("| model | images | controls | alpha | source | batch | controls | union | context |"
          " context - best | 95 % interval | seeds |")  # fmt: skip
    print("| --- " * 12 + "|")
    for point in sorted(cells, key=lambda p: (p[0], -p[1], -p[2], -(p[3] or 9))):
        if set(cells[point]) != {*PLAIN, "context"}:
            continue  # a grid that is still at work
        total += 1
        method, images, controls, alpha = point
        keys = sorted(set.intersection(*(set(values) for values in cells[point].values())))
        cells[point] = {
            name: {key: values[key] for key in keys} for name, values in cells[point].items()
        }
        mean = {name: np.mean(list(cells[point][name].values())) for name in (*PLAIN, "context")}
        rivals = PLAIN if controls else ("source",)
        best = max(rivals, key=lambda name: mean[name])
        ours, theirs = ([cells[point][name][key] for key in keys] for name in ("context", best))
        gap = paired_interval(ours, theirs, [unit for unit, _ in keys], [seed for _, seed in keys])
        numbers = " | ".join(f"{100 * mean[name]:.1f}" for name in (*PLAIN, "context"))
        low, high = gap.low, gap.high
        span = "-" if low is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
        word = "as on the plate" if alpha is None else f"{alpha:g}"
        if images == 1:
            word = "(one image)"
        difference = 100 * (mean["context"] - mean[best])
        print(f"| {method} | {images} | {controls} | {word} | {numbers} | {difference:+.1f}"
              f" ({best}) | {span} | {len({seed for _, seed in keys})} |")  # fmt: skip
        if difference < -2:
            missed.append((point, difference))
        scored = {n for (p, name, _), n in counted.items() if p == point and name == "context"}
        if min(scored) < 2000:
            print(f"  only {min(scored)} images scored")
    print(f"\n{total} points; more than 2 points below the yardstick: {len(missed)}")
    for point, difference in missed:
        print(f"  {point}: {difference:+.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
