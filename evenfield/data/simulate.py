"""Simulate a Cell Painting screen with known batch effects: the door to `evenfield.data.simulation`.

    config = demo_screen()
    screen = simulate(config, "screen")

`layout` says what is in each well, `effects` how each plate is spoiled, `render` draws fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from evenfield.data.simulation.config import (
    CHANNELS,
    CellConfig,
    EffectConfig,
    LayoutConfig,
    Levels,
    MechanismConfig,
    OpticsConfig,
    SimulationConfig,
    check,
)
from evenfield.data.simulation.effects import effects
from evenfield.data.simulation.plan import layout
from evenfield.data.simulation.presets import demo_screen, grid_screen, tiny_screen

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "CHANNELS",
    "CellConfig",
    "EffectConfig",
    "LayoutConfig",
    "Levels",
    "MechanismConfig",
    "OpticsConfig",
    "SimulationConfig",
    "demo_screen",
    "effects",
    "grid_screen",
    "layout",
    "render",
    "tiny_screen",
]


def render(
    config: SimulationConfig,
    manifest: pd.DataFrame,
    plate_effects: pd.DataFrame,
    rows: Sequence[int] | np.ndarray | slice,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw fields: a pure function of its arguments, each field of its own row only.

    On one processor the bits are the same however the rows are grouped; another processor or a GPU
    may round its last bit otherwise.

    Args:
        config: The simulation.
        manifest: As `layout(config)` gives it (more columns do no harm).
        plate_effects: As `effects(config)` gives it, or changed by hand.
        rows: Which rows of the manifest to draw.
        device: Where to draw.

    Returns:
        (n, 5, size, size) uint8 or uint16, as `config.dtype` says.

    Raises:
        InputError: A plate has no row in `plate_effects`.
    """
    import torch

    from evenfield.data.simulation.cells import fields_of, sample
    from evenfield.data.simulation.draw import draw
    from evenfield.data.simulation.optics import expose
    from evenfield.errors import InputError

    check(config)
    chosen = manifest.iloc[rows]
    names = pd.Index(plate_effects["Metadata_Plate"])
    place = names.get_indexer(pd.Index(chosen["Metadata_Plate"]))
    if (place < 0).any():
        missing = chosen["Metadata_Plate"].iloc[int(np.argmax(place < 0))]
        raise InputError(
            f"plate {missing} has no row in the effects table",
            fix="give the table that `effects(config)` returns for this configuration",
        )
    plate = plate_effects.iloc[place].reset_index(drop=True)
    with torch.inference_mode():
        known = fields_of(config, chosen, plate, torch.device(device))
        light = draw(sample(config, known), config.size)
        return expose(light, config, known, plate)
