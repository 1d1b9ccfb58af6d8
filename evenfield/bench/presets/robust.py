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
SHOWN = (AdapterChoice(name="source", pictures=True),)
TRAIN = TrainConfig(
    epochs=20,
    patience=20,
    num_perturbed=32,
    accumulate=1,
    schedule="cosine",
    lr=2e-3,
    select_by="accuracy",
)
TIMES = 4
"""How many times the epochs of ERM its controls of equal compute get: a step of ContriMix with
three mixes costs 4.3 of ERM with a ResNet-50."""
TIMES_HERE = 8
"""The same with this small network and one mix: here the encoders of ContriMix weigh more."""
TIMES_ABRA = 2
"""Times the epochs of ABRA, which perturbs every second batch: together about four times ERM."""
COLOUR = View(colour=0.4)
IMAGE = View(normalise="image")
IMAGE_COLOUR = View(normalise="image", colour=0.4)
MIXES: dict[str, Any] = {
    "num_mixes": 1,
    "num_attributes": 5,
    "absorbance": False,
    "width": 0.25,
    "recon": "mean_l1",
    "weight_recon": 1.0,
    "weight_similarity": 0.3,
    "weight_risk": 1.0,
    "normalise": "image",
    "ce_input": "original",
    "test_input": "original",
}
"""ContriMix for fluorescence, small enough for two cores; with the published weights attributes
collapse in so short a training. The classifier's input is normalised as published for RxRx1; it
learns from originals and mixes, since after so few steps a reconstruction loses too much."""
MARGIN: dict[str, Any] = {"s": 10.0, "m": 0.1}
"""Of the margin heads: 8 classes in so few steps do not take the published 30 and 0.3."""
SEARCHED: dict[str, dict[str, Any]] = {
    "full": {},
    "no adversary": {"adversary": "gauss"},
    "eta 0.25": {"eta": 0.25, "rho": 0.5},
    "eta 0.1": {"eta": 0.1, "rho": 0.2},
    "stem": {"stages": ["stem"]},
    "stem, eta 0.25": {"stages": ["stem"], "eta": 0.25, "rho": 0.5},
    "lambda_d 0.3": {"lambda_d": 0.3},
    "apply_prob 0.25": {"apply_prob": 0.25},
    "adv_warmup 0.4": {"adv_warmup": 0.4},
    "lambda_a 0.5, lambda_d 0.3": {"lambda_a": 0.5, "lambda_d": 0.3},
}
"""Settings of ABRA among which `abra_search` looks."""
AT_STEM = SEARCHED["stem"]
"""What it found for a training of so few steps: to perturb one place, not three."""


def arm(
    label: str,
    method: str,
    *,
    times: int = 1,
    view: View | None = None,
    adapters: tuple[AdapterChoice, ...] = SOURCE,
    **options: object,
) -> Arm:
    """An arm without adaptation, trained for `times` as many epochs."""
    epochs = times * TRAIN.epochs
    return Arm(
        label=label,
        method=method,
        options=dict(options),
        view=view or View(),
        train=replace(TRAIN, epochs=epochs, patience=epochs),
        adapters=adapters,
    )


def abra_arm(name: str, **options: Any) -> Arm:
    """ABRA on images that are normalised one by one, with the small margin."""
    return arm(f"abra {name}", "abra", view=IMAGE, **MARGIN, **options)


def robust() -> GridConfig:
    """ContriMix and ABRA against ERM, ERM with as much compute and colour jitter, and others.

    For the simulated screens `effect-stain`, `effect-optics`, `effect-cells` and `effect-all`; no
    adapter and no statistics of the test batches. Methods have the input normalisation of their
    published models for fluorescence, each image by itself, and so has ERM in arms of its own.
    Settings were chosen on a screen with another seed than those that `benchmarks/robust.py` runs.
    """
    return GridConfig(
        arms=(
            arm("erm", "erm"),
            arm("erm[compute, colour]", "erm", times=TIMES, view=COLOUR),
            arm("erm[twice the compute, colour]", "erm", times=TIMES_HERE, view=COLOUR),
            arm("erm[image]", "erm", view=IMAGE),
            arm("erm[image, colour]", "erm", times=TIMES_ABRA, view=IMAGE_COLOUR),
            arm("dsu[image]", "dsu", view=IMAGE),
            arm("abra[image]", "abra", times=TIMES_ABRA, view=IMAGE, **MARGIN),
            arm(
                "contrimix[image]",
                "contrimix",
                view=View(normalise="unit"),
                adapters=SHOWN,
                **MIXES,
            ),
        ),
        folds=(TEST_BATCHES,),
        split=SplitConfig(select_on="wells"),
        description="Which mechanism is in the well, on batches of which nothing was ever seen?",
    )


def abra_ablation() -> GridConfig:
    """The nine rows of ABRA's ablation, and ERM with as much compute; screens as for `robust`.

    The last three of the rows again, perturbed at the stem alone.
    """
    rows = ablation_rows()
    last = [row for row in rows if row[0] in "678"]
    return replace(
        robust(),
        arms=(
            *(abra_arm(row, **options) for row, options in rows.items()),
            arm("erm[compute]", "erm", times=2, view=IMAGE),
            *(abra_arm(f"{row}, stem", **AT_STEM, **rows[row]) for row in last),
        ),
        description="Which part of ABRA does the work?",
    )  # fmt: skip


def abra_search() -> GridConfig:
    """Settings of ABRA on two source batches of a screen that no result is about (seed 100)."""
    return replace(
        robust(),
        arms=tuple(abra_arm(name, **options) for name, options in SEARCHED.items()),
        folds=(("b07", "b08"),),
        seeds=(100,),
        description="How strong a perturbation does a short training take?",
    )


ROBUST: dict[str, Callable[[], GridConfig]] = {
    "robust": robust,
    "abra-ablation": abra_ablation,
    "abra-search": abra_search,
}
