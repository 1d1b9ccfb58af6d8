"""From rows of the manifest to pixels, a few fields at once."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from evenfield.data.simulation.cells import fields_of, sample
from evenfield.data.simulation.config import SimulationConfig
from evenfield.data.simulation.draw import draw
from evenfield.data.simulation.optics import expose


def render_block(
    config: SimulationConfig, manifest: pd.DataFrame, plate: pd.DataFrame, device: torch.device
) -> Tensor:
    """Draw all given fields in one go: (n, 5, size, size).

    Args:
        config: The simulation.
        manifest: The fields' rows.
        plate: The effects of each field's plate, one row for each field.
        device: Where to draw.
    """
    with torch.inference_mode():
        known = fields_of(config, manifest, plate, device)
        light = draw(sample(config, known), config.size)
        return expose(light, config, known, plate)
