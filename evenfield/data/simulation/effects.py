"""The known batch effects: one row of parameters for each plate."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from evenfield.data.simulation.config import CHANNELS, Levels, SimulationConfig, check
from evenfield.data.simulation.plan import plates
from evenfield.seeds import numpy_generator

NEIGHBOURS = tuple(pairwise(CHANNELS)) + tuple((b, a) for a, b in pairwise(CHANNELS))
"""(from, into): the pairs of channels between which light bleeds."""


def effects(config: SimulationConfig) -> pd.DataFrame:
    """The true parameters of every plate.

    A parameter's deviation is a sum of three draws, of its source, batch and plate, each uniform
    with the stated standard deviation (so that no batch is an outlier that rules a data set). A
    draw depends on the seed, the effect and the unit's name only: adding plates changes none.

    Returns:
        `Metadata_Source, Metadata_Batch, Metadata_Plate`; `gain_<channel>` (factor),
        `background_<channel>` (fraction of saturation), `blur_<channel>` (µm, standard deviation),
        `bleed_<from>_<into>` (fraction), `gamma` (exponent), `noise` (factor), `vignetting`
        (fraction lost in the corners), `vignetting_y`, `vignetting_x` (centre, in units of half a
        side), `cell_density`, `cell_size` (factors), `edge` (relative change of signal in the
        outermost wells), `pixel_size_um`, `bit_depth`.

    Raises:
        InputError: The configuration is out of its range.
    """
    check(config)
    return pd.DataFrame(
        _plate(config, source, batch, plate) for source, batch, plate, _ in plates(config.layout)
    )


def _plate(
    config: SimulationConfig, source: str, batch: str, plate: str
) -> dict[str, str | float | int]:
    strengths, optics = config.effects, config.optics
    units = (("source", source), ("batch", batch), ("plate", plate))

    def shift(levels: Levels, effect: str, size: int = 1) -> np.ndarray:
        """(size,) deviations; what channels share has the variance `channel_correlation`."""
        total = np.zeros(size)
        shared = strengths.channel_correlation
        for level, unit in units:
            draw = numpy_generator(config.seed, "effect", effect, level, unit)
            common, *own = np.sqrt(3) * draw.uniform(-1, 1, 1 + size)
            weight = shared if size > 1 else 0.0
            mixed = np.sqrt(weight) * common + np.sqrt(1 - weight) * np.array(own)
            total += getattr(levels, level) * mixed
        return config.strength * total

    def factor(levels: Levels, effect: str, size: int = 1) -> np.ndarray:
        return np.exp(shift(levels, effect, size))

    num = len(CHANNELS)
    row: dict[str, str | float | int] = {
        "Metadata_Source": source,
        "Metadata_Batch": batch,
        "Metadata_Plate": plate,
    }
    per_channel = {
        "gain": factor(strengths.gain, "gain", num),
        "background": optics.background * factor(strengths.background, "background", num),
        "blur": optics.blur_um * factor(strengths.blur, "blur", num),
    }
    for name, values in per_channel.items():
        row |= {f"{name}_{c}": float(v) for c, v in zip(CHANNELS, values, strict=True)}
    bleed = optics.bleed_through * factor(strengths.bleed_through, "bleed_through", len(NEIGHBOURS))
    row |= {
        f"bleed_{a}_{b}": min(float(v), 0.9) for (a, b), v in zip(NEIGHBOURS, bleed, strict=True)
    }
    centre = 0.5 * shift(strengths.vignetting, "vignetting centre", 2)
    row |= {
        "gamma": float(factor(strengths.gamma, "gamma")[0]),
        "noise": float(factor(strengths.noise, "noise")[0]),
        "vignetting": min(
            float(optics.vignetting * factor(strengths.vignetting, "vignetting")[0]), 0.9
        ),
        "vignetting_y": float(np.clip(centre[0], -0.5, 0.5)),
        "vignetting_x": float(np.clip(centre[1], -0.5, 0.5)),
        "cell_density": float(factor(strengths.cell_density, "cell_density")[0]),
        "cell_size": float(factor(strengths.cell_size, "cell_size")[0]),
        "edge": float(np.clip(shift(strengths.edge, "edge")[0], -0.9, 2.0)),
        "pixel_size_um": float(
            config.pixel_size_um * factor(strengths.pixel_size, "pixel_size")[0]
        ),
        "bit_depth": optics.bit_depths[
            (int(source.rsplit("-", 1)[1]) - 1) % len(optics.bit_depths)
        ],
    }
    return row
