"""Grids about adapting to new plates: who needs controls, how many images, which class mix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from evenfield.bench.grid import AdapterChoice, Arm, GridConfig
from evenfield.config import Regime, SplitConfig, TrainConfig, View

SOURCE = AdapterChoice(name="source")
BATCH = AdapterChoice(name="batch")
CONTROLS = AdapterChoice(name="controls")
UNION = AdapterChoice(name="union")
CONTEXT = AdapterChoice(name="context")
STATISTICS = (SOURCE, BATCH, CONTROLS, UNION, CONTEXT)


def arms(
    *, epochs: int, num_perturbed: int, num_controls: int, accumulate: int, view: View
) -> dict[str, Arm]:
    """The family of CS-ARM-BN and ERM under one budget.

    Every arm sees the same number of labelled images in an optimiser step and an epoch: ERM in one
    mixed pass, the others in `accumulate` passes of one plate each.
    """
    episode = TrainConfig(
        epochs=epochs,
        patience=epochs,
        num_perturbed=num_perturbed,
        num_controls=num_controls,
        accumulate=accumulate,
        schedule="cosine",
    )
    mixed = replace(episode, num_perturbed=num_perturbed * accumulate, accumulate=1)

    def arm(label: str, method: str, train: TrainConfig, **options: object) -> Arm:
        return Arm(
            label=label,
            method=method,
            options=dict(options),
            view=view,
            train=train,
            adapters=STATISTICS,
        )

    return {
        "erm": arm("erm", "erm", mixed),
        "arm-bn": arm("arm-bn", "arm-bn", episode),
        "cs-arm-bn": arm("cs-arm-bn", "cs-arm-bn", episode),
        "cs-arm-bn[controls]": arm(
            "cs-arm-bn[controls]", "cs-arm-bn", episode, context_train="controls"
        ),
        "arm-cml": arm("arm-cml", "arm-cml", episode),
        "arm-ll": arm("arm-ll", "arm-ll", episode),
    }


def pictured(choices: tuple[AdapterChoice, ...], *names: str) -> tuple[AdapterChoice, ...]:
    """The same adapters; those named get pictures in the report."""
    return tuple(replace(item, pictures=item.name in names) for item in choices)


def demo() -> GridConfig:
    """`make demo`: ERM against CS-ARM-BN on three unseen batches of the simulated demo screen.

    Half of an episode are controls; ERM, which has none, gets twice the epochs: as many images go
    through both networks.
    """
    family = arms(epochs=16, num_perturbed=32, num_controls=32, accumulate=2, view=View())
    erm = family["erm"]
    longer = replace(erm.train, epochs=32, patience=32)
    return GridConfig(
        arms=(
            replace(erm, train=longer, adapters=pictured(STATISTICS, "source")),
            replace(family["cs-arm-bn"], adapters=pictured(STATISTICS, "union")),
        ),
        folds=(("b07", "b08", "b09"),),
        split=SplitConfig(select_on="wells"),
        seeds=(0,),
        description="Which of eight mechanisms is in the well, on three batches never seen before?",
    )


TEST_BATCHES = ("b09", "b10", "b11", "b12")


def regimes() -> GridConfig:
    """The grid over class mix, images and controls of a context, on the simulated grid screen.

    27 points: alpha in {as on the plate, 0.1, 0.01} x images in {1, 8, 64} x controls in
    {0, 8, 64}. One image has no class mix, so its three alphas draw the same contexts.
    """
    family = grid_arms()
    grid = tuple(
        Regime(
            alpha=alpha,
            num_images=images,
            num_controls=controls,
            num_contexts=500 if images == 1 else None,
        )
        for images in (64, 8, 1)
        for controls in (64, 8, 0)
        for alpha in ((None, 0.1, 0.01) if images > 1 else (None,))
    )
    return GridConfig(
        arms=(family["erm"], family["cs-arm-bn"]),
        folds=(TEST_BATCHES,),
        split=SplitConfig(select_on="wells"),
        regimes=(Regime(), *grid),
        description="How much of a new plate does an adapter need, and which class mix breaks it?",
    )


def fairness() -> GridConfig:
    """Who trains with which context, who is tested with which: the fairness table, and more.

    {ERM-trained, meta-trained} x {source, perturbed, union, controls at test}, with all plates'
    images, with 64 images and 128 controls (balanced and at alpha = 0.01), and with one image and
    all controls of its plate (50 images a plate). The runs of `regimes` are used again where
    both grids share a folder.
    """
    family = grid_arms()
    return GridConfig(
        arms=(
            family["erm"],
            family["arm-bn"],
            family["cs-arm-bn"],
            family["cs-arm-bn[controls]"],
        ),
        folds=(TEST_BATCHES,),
        split=SplitConfig(select_on="wells"),
        regimes=(
            Regime(),
            Regime(num_images=64, num_controls=128),
            Regime(alpha=0.01, num_images=64, num_controls=128),
            Regime(num_images=1, num_contexts=50),
        ),
        description="What is due to having controls, and what to training with them?",
    )


def siblings() -> GridConfig:
    """ARM-CML and ARM-LL, with their learned rules, beside ERM and CS-ARM-BN on the demo screen."""
    family = arms(epochs=16, num_perturbed=32, num_controls=32, accumulate=2, view=View(crop=48))
    learned = (SOURCE, AdapterChoice(name="condition"))
    return replace(
        demo(),
        arms=(
            replace(family["erm"], adapters=(SOURCE, UNION)),
            replace(family["cs-arm-bn"], adapters=(UNION,)),
            replace(family["arm-cml"], adapters=learned),
            replace(family["arm-ll"], adapters=learned),
        ),
    )


def grid_arms() -> dict[str, Arm]:
    """The arms of the grid screen; crops of 48 pixels keep 27 points affordable on two cores."""
    return arms(epochs=6, num_perturbed=32, num_controls=64, accumulate=2, view=View(crop=48))


def bbbc021_mechanisms() -> GridConfig:
    """BBBC021 crops of ten weeks: the mechanism in a week that was left out.

    Context, domain and holdout are the week (give `--roles.context Metadata_Batch`): a plate has
    too few crops. A week has 8 to 18 DMSO crops, all of them are its controls; an episode draws 16
    with replacement. The two mechanisms that live in one week are dropped; taxol fills four fifths
    of the rest, so that training draws the classes evenly.
    """
    drawn = arms(epochs=6, num_perturbed=32, num_controls=16, accumulate=2, view=View(crop=48))
    family = {
        name: replace(arm, train=replace(arm.train, balance="class")) for name, arm in drawn.items()
    }
    return GridConfig(
        arms=(
            replace(family["erm"], adapters=pictured(STATISTICS, "source")),
            replace(family["arm-bn"], adapters=(BATCH,)),
            replace(family["cs-arm-bn"], adapters=pictured(STATISTICS, "union")),
        ),
        split=SplitConfig(select_on="wells", exclude=("Kinase inhibitors", "Cholesterol-lowering")),
        also_without=("taxol",),
        description="BBBC021 single-cell crops: which mechanism, in a week that was left out?",
    )


def bbbc021_taxol() -> GridConfig:
    """BBBC021 crops: taxol against DMSO in a week that was left out.

    For a screen of the reader's task `taxol`, in which the DMSO crops of each week are split by
    field into controls that are never scored and a scored half (give `--roles.context
    Metadata_Batch`).
    """
    mechanisms = bbbc021_mechanisms()
    return replace(
        mechanisms,
        split=SplitConfig(select_on="wells"),
        also_without=(),
        description="BBBC021 single-cell crops: taxol or DMSO, in a week that was left out?",
    )


ADAPTATION: dict[str, Callable[[], GridConfig]] = {
    "demo": demo,
    "regimes": regimes,
    "fairness": fairness,
    "siblings": siblings,
    "bbbc021-mechanisms": bbbc021_mechanisms,
    "bbbc021-taxol": bbbc021_taxol,
}
