"""What does it cost to draw the rows of a batch, on 100,000 images of 33 domains?

    python benchmarks/samplers.py [--rows 100000] [--size 72] [--rounds 5]

`direct` is the group loader as it is often written: `numpy.random.choice` on the array of each
domain, which permutes all of its rows for every batch. The goal is 0.1 ms a batch. Prints one
line of JSON and appends it to `benchmarks/records/samplers.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from itertools import count
from statistics import median

import numpy as np
from turns import in_turns, keep

from evenfield.data.groups import Chunks, Domains, Pure
from evenfield.data.sampler import Episodes, Sampler, Shuffled
from evenfield.seeds import numpy_generator

DOMAINS, CELL_TYPES, CLASSES = 33, 4, 1139
BATCHES = 200


class Direct(Sampler):
    """One `RandomState.choice` without replacement for each domain."""

    def __init__(self, rows: np.ndarray, domain: np.ndarray, *, size: int, num_domains: int):
        self._rows = [rows[domain[rows] == code] for code in np.unique(domain[rows])]
        self._num, self._each = num_domains, size // num_domains
        self._random = np.random.RandomState(0)
        self.passes_per_epoch = 1

    def rows(self, step: int) -> np.ndarray:
        names = self._random.choice(len(self._rows), self._num, replace=False)
        drawn = [self._random.choice(self._rows[n], self._each, replace=False) for n in names]
        return np.concatenate(drawn)


def samplers(num: int, size: int) -> dict[str, Sampler]:
    """Samplers over the same rows, each with batches of `size`."""
    random = numpy_generator(0, "benchmark", "samplers")
    rows = random.permutation(num)
    domain = random.integers(0, DOMAINS, num)
    label = random.integers(0, CLASSES, num)
    cells = [rows[domain[rows] % CELL_TYPES == code] for code in range(CELL_TYPES)]
    plates = {f"p{code}": rows[domain[rows] == code] for code in range(DOMAINS)}
    of = {"size": size, "seed": 0}
    return {
        "direct": Direct(rows, domain, size=size, num_domains=9),
        "domains": Domains(rows, domain, num_domains=9, **of),
        "domains, classes evenly": Domains(rows, domain, num_domains=9, label=label, **of),
        "domains, one cell type": Pure(
            [Domains(cell, domain, num_domains=8, **of) for cell in cells], seed=0
        ),
        "chunks": Chunks(rows, domain, chunk=4, **of),
        "shuffled": Shuffled(rows, **of),
        "shuffled, one cell type": Pure([Shuffled(cell, **of) for cell in cells], seed=0),
        "episodes": Episodes(plates, plates, num_perturbed=size // 3, num_controls=size, seed=0),
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="Time of drawing a batch.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=72)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()

    def many(sampler: Sampler):
        steps = count()
        return lambda: [sampler.rows(next(steps)) for _ in range(BATCHES)]

    made = samplers(given.rows, given.size)
    spent = in_turns({name: many(sampler) for name, sampler in made.items()}, rounds=given.rounds)
    times = {name: [seconds / BATCHES for seconds in each] for name, each in spent.items()}
    values = {
        **vars(given),
        "milliseconds": {name: round(1e3 * median(each), 4) for name, each in times.items()},
        "of_direct": {
            name: round(median(a / b for a, b in zip(each, times["direct"], strict=True)), 4)
            for name, each in times.items()
        },
    }
    print(json.dumps(values))
    keep("samplers", values, times)


if __name__ == "__main__":
    main()
