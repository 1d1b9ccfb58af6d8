"""The pictures of docs/simulator.md.

    python benchmarks/simulator_figures.py

Writes docs/images/simulator_mechanisms.png and docs/images/simulator_effects.png: fields of 64
pixels, DNA in blue, AGP in red, ER in green (and in grey where one channel shows more).
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from evenfield.data.simulate import (
    EffectConfig,
    LayoutConfig,
    Levels,
    SimulationConfig,
    effects,
    layout,
    render,
)
from evenfield.data.simulation.phenotypes import MECHANISMS

IMAGES = Path(__file__).parents[1] / "docs" / "images"
STILL = EffectConfig(
    **{item.name: Levels() for item in fields(EffectConfig) if item.name != "channel_correlation"}
)
CHANNEL_OF = {"Golgi disruptor": 3, "mitochondrial uncoupler": 4, "mitochondrial fusion": 4}
CHANGES = {
    "none": {},
    "gain x 0.4": {"gain": 0.4},
    "gain of ER x 2": {"gain_ER": 2.0},
    "background x 3": {"background": 0.18},
    "gamma 1.5": {"gamma": 1.5},
    "gamma 0.7": {"gamma": 0.7},
    "blur x 2.5": {"blur": 3.0},
    "noise x 4": {"noise": 4.0},
    "vignetting 0.6": {"vignetting": 0.6},
    "bleed-through 0.4": {"bleed": 0.4},
    "density x 1.8": {"cell_density": 1.8},
    "size x 1.3": {"cell_size": 1.3},
    "edge -0.6 (well P24)": {"edge": -0.6},
    "pixel 1.4 um": {"pixel_size_um": 1.4},
    "3 bit": {"bit_depth": 3},
}


def colours(image: np.ndarray, gain: float = 1.6) -> np.ndarray:
    """(h, w, 3): AGP, ER and DNA as red, green and blue."""
    return np.clip(image[[3, 1, 0]].transpose(1, 2, 0) / 255 * gain, 0, 1)


def save(panels: list[tuple[str, np.ndarray]], columns: int, name: str) -> None:
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.35 * columns, 1.55 * rows))
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, image) in zip(axes.flat, panels, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, interpolation="nearest")
        axis.set_title(title, fontsize=6.5, pad=2)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.94, 0.03, 0.16)
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / name, dpi=96, metadata={"Software": None})
    plt.close(figure)
    with Image.open(IMAGES / name) as picture:
        small = picture.convert("RGB").quantize(96)
    small.save(IMAGES / name, optimize=True)


def mechanisms() -> None:
    """DMSO and every mechanism at full dose: colour above, grey channels below."""
    plan = LayoutConfig(
        num_batches=1,
        num_plates=1,
        num_mechanisms=len(MECHANISMS),
        num_compounds=1,
        doses_um=(20.0,),
        replicates=1,
        num_dmso=2,
        num_poscon=0,
        num_sites=1,
    )
    config = SimulationConfig(seed=4, effects=STILL, layout=plan)
    table = layout(config)
    images = render(config, table, effects(config), slice(None)).numpy()
    labels = table["Metadata_Label"].fillna("DMSO")
    first = {label: images[np.flatnonzero(labels == label)[0]] for label in ("DMSO", *MECHANISMS)}
    channel = {"transcription inhibitor": 2, "chromatin modifier": 0, "ER stress": 1} | CHANNEL_OF
    names = ("DNA", "ER", "RNA", "AGP", "Mito")
    panels = [(label, colours(image)) for label, image in first.items()]
    panels += [
        (f"same, {names[channel.get(label, 4)]}", image[channel.get(label, 4)])
        for label, image in first.items()
    ]
    half = -(-len(first) // 2)
    both = panels[: len(first)], panels[len(first) :]
    ordered = [p for start in (0, half) for part in both for p in padded(part, start, half)]
    save(ordered, half, "simulator_mechanisms.png")


def padded(
    panels: list[tuple[str, np.ndarray]], start: int, num: int
) -> list[tuple[str, np.ndarray]]:
    part = panels[start : start + num]
    return part + [("", np.ones((1, 1, 3)))] * (num - len(part))


def batch_effects() -> None:
    """One DMSO field of an outermost well, under one changed parameter after the other."""
    plan = LayoutConfig(
        num_batches=1,
        num_plates=1,
        num_mechanisms=0,
        num_dmso=384,
        num_poscon=0,
        num_sites=1,
    )
    config = SimulationConfig(seed=2, effects=STILL, layout=plan)
    table, known = layout(config), effects(config)
    row = int(np.flatnonzero(table["Metadata_Well"] == "P24")[0])
    panels = []
    for title, change in CHANGES.items():
        changed = known.copy()
        for name, value in change.items():
            columns = [c for c in changed if c == name or c.startswith(f"{name}_")]
            if name == "vignetting":
                columns = ["vignetting"]  # not its centre
            changed[columns] = value
        image = render(config, table, changed, [row])[0].numpy()
        panels.append((title, colours(image)))
    save(panels, 5, "simulator_effects.png")


if __name__ == "__main__":
    matplotlib.use("Agg")
    mechanisms()
    batch_effects()
