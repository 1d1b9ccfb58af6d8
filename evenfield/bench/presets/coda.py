"""CODA from one laboratory to another: JUMP's, and simulated ones in a size for a processor.

Fredin Haslum et al., "Bridging generalization gaps in high content imaging through online
self-supervised domain adaptation", WACV 2024, https://arxiv.org/abs/2311.12623. Published settings
follow a description of the released code, not the paper's text. As there, step 1 of the preset for
JUMP keeps the weights of the best vote of neighbours on a plate of the source, which reads labels
(looked at once an epoch, there ten times); the small one keeps the last weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evenfield.bench.presets.cdcl import SMALL_CROPS, SMALL_HEAD, labs_screen, small_train
from evenfield.config import Crops, RoleChoice, RunConfig, SplitConfig, TrainConfig, View
from evenfield.data.simulation.config import SimulationConfig
from evenfield.errors import InputError
from evenfield.train.online_config import OnlineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Coda:
    """The four steps of CODA on a screen that holds a source and a target.

    Attributes:
        pretrain: Step 1, `dino` on the source.
        classify: Step 2, `frozen`; its `train.weights` is the folder of step 1, put in by the
            caller.
        online: Step 3; its plates are put in by the caller.
        roles: Other columns for the roles than the screen's.
    """

    pretrain: RunConfig
    classify: RunConfig
    online: OnlineConfig
    roles: RoleChoice


VALIDATION_PLATES = {
    "source_3": "JCPQC016",
    "source_5": "ACPJUM012",
    "source_8": "A1166127",
    "source_11": "EC103-132LM2",
}
"""The plate of each source that selects in the released code."""


def coda_jump_target2(
    source: str = "source_3", target: str = "source_5", *, weights: Path | None = None
) -> Coda:
    """CODA from one laboratory of JUMP to another (Fredin Haslum et al., WACV 2024).

    For a screen of `evenfield ingest jump SCREEN --folder GALLERY --tables TABLES --sources
    source_3 source_5 --channels DNA AGP RNA --illumination off --mechanisms MOA --process.crop 448
    --process.eight-bit deepprofiler`
    (both laboratories and no other; mechanisms as in the page about JUMP), the command is
    `python benchmarks/coda_table.py jump OUT --screen SCREEN --source source_3 --target source_5
    --weights deit_small_patch16_224-cd65a155.pth`

    Expected accuracy over 54 mechanisms, site by site: in-domain 0.343, frozen 0.142, adapted
    0.331; bar heights of a figure, for which it is unknown which laboratories it shows and whether
    they are results. Hours: about 2.5 for step 1, 1 for step 2 and 2.5 for each adaptation to 24
    plates (69,000 steps of 128).

    Args:
        source: The laboratory with labels; one plate of it selects the classifier.
        target: The laboratory that is adapted to; all of its plates are judged.
        weights: A local file of DeiT-S weights that encoder and task model start from.

    Raises:
        InputError: It is not known which plate of the source selects.
    """
    if source not in VALIDATION_PLATES or source == target:
        raise InputError(
            f"CODA from {source!r} to {target!r}",
            fix=f"give two laboratories, the first of: {', '.join(VALIDATION_PLATES)}",
        )
    crops = Crops(global_side=224, local_side=96, resize=False, brightness=0.005)
    view = View(normalise="unit", crop=224, self_normalise=True, crops=crops)
    split = SplitConfig(
        test=(target,), select_on="units", validation=(VALIDATION_PLATES[source],), wells=0.0
    )
    first = TrainConfig(
        backbone="deit-small",
        weights=weights,
        num_perturbed=128,
        accumulate=1,
        pairs="plate",
        pair_fallback="same-image",
        epochs=300,
        patience=300,
        select_by="knn",
        optimiser="adamw",
        lr=1e-4,
        weight_decay=1e-5,
        schedule="cosine",
        warmup=10 / 300,
        clip=1.0,
    )
    second = replace(
        first, weights=None, pairs="auto", epochs=50, patience=50, select_by="accuracy",
        schedule="constant", warmup=3 / 50,
    )  # fmt: skip
    options: dict[str, Any] = {"freeze_last": 1 / 300, "weight_decay_end": 1e-4}
    task: dict[str, Any] = {"task": "transformer", "task_weights": weights and str(weights)}
    return Coda(
        pretrain=RunConfig(method="dino", options=options, view=view, split=split, train=first),
        classify=RunConfig(method="frozen", options=task, view=view, split=split, train=second),
        online=OnlineConfig(together=True, epochs=300, size=128),
        roles=RoleChoice(domain="Metadata_Plate", holdout="Metadata_Source"),
    )


CODA_EPOCHS, CODA_STEPS = 50, 100


def two_labs_screen(seed: int = 0) -> SimulationConfig:
    """Two laboratories of 4 batches of 2 plates, 2,048 fields, plates as in `labs_screen`."""
    screen = labs_screen(seed)
    return replace(screen, layout=replace(screen.layout, num_sources=2, num_batches=4))


def coda_labs() -> Coda:
    """CODA from one simulated laboratory to another: `coda_jump_target2` for a processor.

    `python benchmarks/coda_table.py run OUT`. Expected: docs/results-self-supervision. Hours: 0.2
    a seed on one core. A small convolutional encoder with a linear classifier: the released pair
    of transformers takes six times as long at this size. Crops are not normalised one by one as
    published: from random weights, cross-plate pairs of such crops taught nothing here (a loss of
    ln 512 to the end), where the authors start from ImageNet weights.
    """
    view = View(normalise="dataset", crops=SMALL_CROPS)
    split = SplitConfig(test=("source-2",), select_on="wells", wells=0.15)
    first = replace(small_train(CODA_EPOCHS), pairs="plate", unlabelled="none")
    second = replace(first, pairs="auto", epochs=30, patience=30, lr=3e-3)
    return Coda(
        pretrain=RunConfig(method="dino", options=SMALL_HEAD, view=view, split=split, train=first),
        classify=RunConfig(
            method="frozen", options={"task": "linear"}, view=view, split=split, train=second
        ),
        online=OnlineConfig(together=True, steps=CODA_STEPS, size=64, check_every=10),
        roles=RoleChoice(holdout="Metadata_Source"),
    )
