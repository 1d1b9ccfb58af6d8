"""Grids about models that hold on new batches without having seen any of their images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from evenfield.bench.grid import AdapterChoice, Arm, GridConfig
from evenfield.config import SplitConfig, TrainConfig, View
from evenfield.methods.abra import ablation_rows

TEST_BATCHES = ("b09", "b10", "b11", "b12")
SOURCE = (AdapterChoice(name="source"),)
TRAIN = TrainConfig(
    epochs=20,
    patience=20,
    num_perturbed=32,
    accumulate=1,
    schedule="cosine",
    lr=2e-3,
    select_by="accuracy",
)
TIMES = 3
"""How many times the epochs of ERM its controls of equal compute get: a step of ContriMix with two
mixes, or of ABRA with one inner step, costs about as many steps of ERM."""
COLOUR = View(colour=0.4)
MIXES: dict[str, Any] = {"num_mixes": 2, "num_attributes": 5, "absorbance": False, "width": 0.25}
"""ContriMix for fluorescence, small enough for two cores."""
MARGIN: dict[str, Any] = {"s": 10.0, "m": 0.1}
"""Of the margin heads: 8 classes in 480 steps do not take the published 30 and 0.3."""


def arm(
    label: str, method: str, *, times: int = 1, view: View | None = None, **options: object
) -> Arm:
    """An arm without adaptation, trained for `times` as many epochs."""
    epochs = times * TRAIN.epochs
    return Arm(
        label=label,
        method=method,
        options=dict(options),
        view=view or View(),
        train=replace(TRAIN, epochs=epochs, patience=epochs),
        adapters=SOURCE,
    )


def robust() -> GridConfig:
    """ContriMix and ABRA against ERM, ERM with as much compute and colour jitter, and others.

    For the simulated screens `effect-stain`, `effect-optics`, `effect-cells` and `effect-all`; no
    adapter and no statistics of the test batches. `benchmarks/robust.py` runs them all.
    """
    return GridConfig(
        arms=(
            arm("erm", "erm"),
            arm("erm[compute, colour]", "erm", times=TIMES, view=COLOUR),
            arm("erm[per-image]", "erm", view=View(normalise="image")),
            arm("dsu", "dsu"),
            arm("arcface", "arcface", **MARGIN),
            arm("abra", "abra", **MARGIN),
            arm("contrimix", "contrimix", view=View(normalise="unit"), **MIXES),
        ),
        folds=(TEST_BATCHES,),
        split=SplitConfig(select_on="wells"),
        description="Which mechanism is in the well, on batches of which nothing was ever seen?",
    )


def abra_ablation() -> GridConfig:
    """The nine rows of ABRA's ablation, and ERM with as much compute; screens as for `robust`."""
    return replace(
        robust(),
        arms=(
            *(arm(f"abra {row}", "abra", **MARGIN, **options)
              for row, options in ablation_rows().items()),
            arm("erm[compute]", "erm", times=TIMES),
        ),
        description="Which part of ABRA does the work?",
    )  # fmt: skip


ROBUST: dict[str, Callable[[], GridConfig]] = {
    "robust": robust,
    "abra-ablation": abra_ablation,
}
