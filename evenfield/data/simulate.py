"""Simulate a Cell Painting screen with known batch effects.

    config = demo_screen()
    screen = simulate(config, "screen")

`layout` says what is in each well, `effects` how each plate is spoiled, `render` draws fields. The
parts are in `evenfield.data.simulation`; the page `docs/simulator.md` describes them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
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
from evenfield.data.simulation.presets import (
    EFFECT_TYPES,
    demo_screen,
    effect_screen,
    grid_screen,
    tiny_screen,
)
from evenfield.data.store import Screen, ScreenWriter
from evenfield.errors import InputError
from evenfield.progress import track

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "CHANNELS",
    "EFFECT_TYPES",
    "CellConfig",
    "EffectConfig",
    "LayoutConfig",
    "Levels",
    "MechanismConfig",
    "OpticsConfig",
    "SimulationConfig",
    "demo_screen",
    "effect_screen",
    "effects",
    "grid_screen",
    "layout",
    "render",
    "simulate",
    "tiny_screen",
]


EFFECTS = "effects.parquet"
"""The true parameters of every plate, written beside the pixels."""

PIXELS_AT_ONCE = 64 * 64 * 64
"""Fields are drawn in blocks of about so many pixels a channel, which stay in the cache."""


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

    from evenfield.data.simulation.block import render_block

    check(config)
    index = np.arange(len(manifest))[rows if isinstance(rows, slice) else np.asarray(rows, int)]
    chosen = manifest.iloc[index]
    names = pd.Index(plate_effects["Metadata_Plate"])
    place = names.get_indexer(pd.Index(chosen["Metadata_Plate"]))
    if (place < 0).any():
        missing = chosen["Metadata_Plate"].iloc[int(np.argmax(place < 0))]
        raise InputError(
            f"plate {missing} has no row in the effects table",
            fix="give the table that `effects(config)` returns for this configuration",
        )
    plate = plate_effects.iloc[place].reset_index(drop=True)
    images = torch.empty(
        (len(chosen), len(CHANNELS), config.size, config.size),
        dtype=getattr(torch, config.dtype),
        device=device,
    )
    step = max(1, PIXELS_AT_ONCE // config.size**2)
    for start in range(0, len(chosen), step):
        part = slice(start, start + step)
        images[part] = render_block(config, chosen[part], plate[part], torch.device(device))
    return images


def simulate(
    config: SimulationConfig,
    folder: Path | str,
    *,
    device: torch.device | str = "cpu",
    num_workers: int | None = None,
    overwrite: bool = False,
) -> Screen:
    """Write a simulated screen; a job that was killed goes on where it stopped.

    The folder also gets `effects.parquet`, the table of `effects(config)`; the configuration itself
    is in the provenance of `screen.json`.

    Args:
        config: The simulation.
        folder: Where the screen will lie; must not exist unless `overwrite`.
        device: Where fields are drawn.
        num_workers: Threads that draw; by default one for each processor that may be used, and one
            on a GPU.
        overwrite: Replace a screen that lies there.

    Raises:
        InputError: The configuration is out of its range, or the folder exists.
        StorageError: There is not enough space.
    """
    import torch

    manifest, plate_effects = layout(config), effects(config)
    on_gpu = torch.device(device).type != "cpu"
    if num_workers is None:
        usable = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        )
        num_workers = 1 if on_gpu else usable or 1
    step = max(1, PIXELS_AT_ONCE // config.size**2) * (16 if on_gpu else 1)
    with ScreenWriter(
        folder,
        manifest,
        channels=CHANNELS,
        shape=(len(CHANNELS), config.size, config.size),
        dtype=config.dtype,
        pixel_size_um=config.pixel_size_um,
        provenance={"source": "simulated", "device": str(device), "config": asdict(config)},
        overwrite=overwrite,
    ) as writer:
        plate_effects.to_parquet(writer.partial / EFFECTS, index=False)
        todo = writer.todo
        chunks = [todo[start : start + step] for start in range(0, len(todo), step)]

        def work(rows: np.ndarray) -> None:
            writer.write(rows, render(config, manifest, plate_effects, rows, device).cpu().numpy())

        # One torch thread for each worker: chunks are independent, so threads within an operation
        # would only wait for each other.
        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(
                num_workers, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                for _ in track(pool.map(work, chunks), "simulating", total=len(chunks)):
                    pass
        finally:
            torch.set_num_threads(before)
    return Screen.open(folder)
