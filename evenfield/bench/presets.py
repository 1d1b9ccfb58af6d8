"""Named grids. Each is a function that returns a full configuration and says what it asks."""

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
        patience=max(5, epochs // 3),
        num_perturbed=num_perturbed,
        num_controls=num_controls,
        accumulate=accumulate,
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
    """`make demo`: ERM against CS-ARM-BN on three unseen batches of the simulated demo screen."""
    family = arms(epochs=16, num_perturbed=32, num_controls=32, accumulate=2, view=View())
    return GridConfig(
        arms=(
            replace(family["erm"], adapters=pictured(STATISTICS, "source")),
            replace(family["cs-arm-bn"], adapters=pictured(STATISTICS, "union")),
        ),
        folds=(("b07", "b08", "b09"),),
        split=SplitConfig(select_on="wells"),
        seeds=(0,),
        description="Which of eight mechanisms is in the well, on three batches never seen before?",
    )


PRESETS: dict[str, Callable[[], GridConfig]] = {
    "demo": demo,
}

__all__ = ["PRESETS", "Regime", "SplitConfig", "arms", "demo"]
