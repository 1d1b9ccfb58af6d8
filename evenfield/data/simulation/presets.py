"""Screens that are used again and again, as functions."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from evenfield.data.simulation.config import EffectConfig, LayoutConfig, Levels, SimulationConfig

EFFECT_TYPES: dict[str, dict[str, float]] = {
    "stain": {"gain": 1.0, "background": 1.0, "bleed_through": 3.0, "gamma": 2.0},
    "optics": {"blur": 4.0, "noise": 4.0, "vignetting": 4.0},
    "cells": {"cell_density": 4.0, "cell_size": 6.0, "edge": 4.0},
    "all": {item.name: 2.0 for item in fields(EffectConfig) if item.name != "channel_correlation"},
}
"""Kinds of batch effects, one screen each: how many times the usual strength of which."""


def demo_screen(seed: int = 0) -> SimulationConfig:
    """The screen of `make demo`: 9 batches of 2 plates, 3,600 fields (the last 3 batches for test).

    Each plate has 8 mechanisms in 16 wells each, 64 DMSO and 8 positive-control wells.
    """
    return SimulationConfig(
        seed=seed,
        layout=LayoutConfig(
            num_batches=9,
            num_plates=2,
            num_mechanisms=8,
            num_compounds=2,
            doses_um=(5.0, 20.0),
            replicates=4,
            num_dmso=64,
            num_poscon=8,
            num_sites=1,
        ),
    )


def grid_screen(seed: int = 0) -> SimulationConfig:
    """A screen of moderate size: 12 batches of 1 plate (the last 4 for test), 8,736 fields.

    Each plate holds 72 fields of each of 8 mechanisms and 152 DMSO fields, so that contexts of 64
    images and 128 controls can be drawn, whatever the class mix, with images left to score.
    """
    return SimulationConfig(
        seed=seed,
        layout=LayoutConfig(
            num_batches=12,
            num_plates=1,
            num_mechanisms=8,
            num_compounds=2,
            doses_um=(3.0, 10.0, 30.0),
            replicates=6,
            num_dmso=76,
            num_poscon=0,
            num_sites=2,
        ),
    )


def effect_screen(kind: str, seed: int = 0) -> SimulationConfig:
    """A screen with one kind of batch effects: 12 batches of 2 plates, 1,632 fields.

    The last 4 batches are for test. Two cell types take turns over the batches. Each plate has 8
    mechanisms in 8 wells each (2 compounds, 2 doses, twice) and 4 DMSO wells. What the kind names
    in `EFFECT_TYPES` varies by that many times the usual standard deviation; what it does not name
    is alike on all plates.
    """
    factors = EFFECT_TYPES[kind]

    def times(factor: float, levels: Levels) -> Levels:
        return Levels(
            source=factor * levels.source, batch=factor * levels.batch, plate=factor * levels.plate
        )

    usual = EffectConfig()
    levels: dict[str, Any] = {
        item.name: times(factors.get(item.name, 0.0), getattr(usual, item.name))
        for item in fields(EffectConfig)
        if item.name != "channel_correlation"
    }
    return SimulationConfig(
        seed=seed,
        layout=LayoutConfig(
            num_batches=12,
            num_plates=2,
            num_mechanisms=8,
            num_compounds=2,
            doses_um=(5.0, 20.0),
            replicates=2,
            num_dmso=4,
            num_poscon=0,
            num_sites=1,
            num_cell_types=2,
        ),
        effects=EffectConfig(**levels),
    )


def tiny_screen(seed: int = 0) -> SimulationConfig:
    """For tests: 4 batches of 2 plates, 288 fields of 32 pixels."""
    return SimulationConfig(
        seed=seed,
        size=32,
        pixel_size_um=3.0,
        layout=LayoutConfig(
            num_batches=4,
            num_plates=2,
            num_mechanisms=3,
            num_compounds=1,
            doses_um=(10.0,),
            replicates=8,
            num_dmso=10,
            num_poscon=2,
            num_sites=1,
        ),
    )
