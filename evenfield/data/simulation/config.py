"""What is simulated, as one frozen tree. No torch here, so that `--help` stays quick."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from evenfield.errors import InputError

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
"""The five channels of Cell Painting, in the order of the pixels."""

ROWS, COLUMNS = 16, 24
"""A 384-well plate: rows A to P, columns 1 to 24."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutConfig:
    """How many plates there are and what is in their wells.

    Attributes:
        num_sources: Number of sources (laboratories, each with its own microscope).
        num_batches: Number of experimental batches of each source.
        num_plates: Number of plates of each batch.
        num_mechanisms: Number of mechanisms of action, taken from the start of `MECHANISMS`.
        num_compounds: Number of compounds of each mechanism, which differ in potency.
        doses_um: Concentrations in µM at which every compound is given.
        replicates: Number of wells on a plate of each compound at each dose.
        num_dmso: Number of negative-control (DMSO) wells on a plate.
        num_poscon: Number of positive-control wells on a plate (first compound, highest dose).
        num_sites: Number of fields imaged in each well.
        num_cell_types: Number of cell types; batches take them in turn.
        same_layout: Whether all plates share one random layout, instead of one layout each.
        position_confound: Fraction of treated wells placed by mechanism (in column order) instead
            of at random.
        batch_confound: Probability that a treated well holds a mechanism preferred by its batch
            instead of the planned one.
    """

    num_sources: int = 1
    num_batches: int = 6
    num_plates: int = 2
    num_mechanisms: int = 8
    num_compounds: int = 2
    doses_um: tuple[float, ...] = (0.3, 1.0, 10.0)
    replicates: int = 4
    num_dmso: int = 64
    num_poscon: int = 8
    num_sites: int = 2
    num_cell_types: int = 1
    same_layout: bool = False
    position_confound: float = 0.0
    batch_confound: float = 0.0

    @property
    def num_treated(self) -> int:
        """Treated wells on a plate."""
        return self.num_mechanisms * self.num_compounds * len(self.doses_um) * self.replicates


@dataclass(frozen=True, slots=True, kw_only=True)
class CellConfig:
    """The untreated cells.

    Attributes:
        density_per_mm2: Mean number of cells per square millimetre.
        radius_um: Mean radius of a cell.
        size_spread: Standard deviation between cells of the logarithm of the radius.
        intensity_spread: Standard deviation between cells of the logarithm of each stain's amount.
        well_spread: The same between wells (seeding and staining differ a little everywhere).
        clumping: From 0 (cells avoid each other) to 1 (cells attract and overlap their neighbours).
    """

    density_per_mm2: float = 400.0
    radius_um: float = 17.0
    size_spread: float = 0.12
    intensity_spread: float = 0.15
    well_spread: float = 0.08
    clumping: float = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class MechanismConfig:
    """How strongly compounds act.

    Attributes:
        effect_size: Multiplies what every mechanism does to the cells; 0 makes all inert.
        ec50_um: Median concentration of half effect.
        ec50_spread: Standard deviation between compounds of the logarithm of the EC50.
        hill: Hill coefficient of the dose response.
        responders: Fraction of the cells of a treated well that respond.
    """

    effect_size: float = 1.0
    ec50_um: float = 0.5
    ec50_spread: float = 0.4
    hill: float = 1.5
    responders: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class OpticsConfig:
    """The microscope before any batch effect.

    Attributes:
        exposure: Mean signal of a cell's brightest region, as a fraction of saturation.
        background: Mean background, as a fraction of saturation.
        blur_um: Standard deviation of the point-spread function in µm.
        vignetting: Fraction of the light lost in the field's corners.
        bleed_through: Fraction of a channel's light seen in its spectral neighbours.
        photons: Photons of a saturated pixel; the shot noise follows from it.
        read_noise: Standard deviation of the camera's noise, as a fraction of saturation.
        bit_depths: Bit depths of the microscopes; sources take them in turn.
    """

    exposure: float = 0.34
    background: float = 0.06
    blur_um: float = 1.2
    vignetting: float = 0.10
    bleed_through: float = 0.04
    photons: float = 1500.0
    read_noise: float = 0.006
    bit_depths: tuple[int, ...] = (12,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Standard deviations of one batch effect at its three levels (they add up as variances).

    Attributes:
        source: Between sources.
        batch: Between the batches of a source.
        plate: Between the plates of a batch.
    """

    source: float = 0.0
    batch: float = 0.0
    plate: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectConfig:
    """How strong each batch effect is, at each level.

    Effects act on the logarithm of their quantity, so 0.3 means about 30 %, unless stated.

    Attributes:
        gain: Stain and exposure, per channel.
        background: Background light, per channel.
        gamma: Exponent of the camera's response (one for all channels).
        blur: Width of the point-spread function, per channel.
        noise: Shot and read noise (one for all channels).
        vignetting: Loss in the corners, and in units of 0.5 field sides the place of its centre.
        bleed_through: Bleed-through, per pair of neighbouring channels.
        cell_density: Number of cells seeded.
        cell_size: Radius of the cells.
        edge: Relative change of signal in the outermost wells (additive, sign either way); half as
            much of the cell number goes with it.
        pixel_size: Pixel size in the sample.
        channel_correlation: Correlation between channels of the effects that are per channel.
    """

    gain: Levels = Levels(source=0.30, batch=0.65, plate=0.06)
    background: Levels = Levels(source=0.30, batch=0.40, plate=0.10)
    gamma: Levels = Levels(source=0.08, batch=0.16, plate=0.02)
    blur: Levels = Levels(source=0.15, batch=0.16, plate=0.04)
    noise: Levels = Levels(source=0.20, batch=0.20, plate=0.05)
    vignetting: Levels = Levels(source=0.40, batch=0.20, plate=0.05)
    bleed_through: Levels = Levels(source=0.30, batch=0.40, plate=0.05)
    cell_density: Levels = Levels(source=0.05, batch=0.10, plate=0.05)
    cell_size: Levels = Levels(source=0.03, batch=0.03, plate=0.01)
    edge: Levels = Levels(source=0.02, batch=0.05, plate=0.05)
    pixel_size: Levels = Levels(source=0.05, batch=0.0, plate=0.0)
    channel_correlation: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """A simulated screen.

    Attributes:
        seed: All randomness follows from it.
        size: Height and width of a field in pixels.
        pixel_size_um: Side of a pixel in the sample.
        dtype: `uint8` (255 is saturation) or `uint16` (the camera's own integers).
        strength: Multiplies the standard deviation of every batch effect; 0 makes all plates alike.
        layout: Plates and wells.
        cells: The untreated cells.
        mechanisms: How strongly compounds act.
        optics: The microscope before any batch effect.
        effects: The batch effects.
    """

    seed: int = 0
    size: int = 64
    pixel_size_um: float = 2.0
    dtype: Literal["uint8", "uint16"] = "uint8"
    strength: float = 1.0
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    cells: CellConfig = field(default_factory=CellConfig)
    mechanisms: MechanismConfig = field(default_factory=MechanismConfig)
    optics: OpticsConfig = field(default_factory=OpticsConfig)
    effects: EffectConfig = field(default_factory=EffectConfig)


def check(config: SimulationConfig) -> SimulationConfig:
    """The configuration itself, if a screen can be made from it.

    Raises:
        InputError: A value is out of its range; the message names it.
    """
    plan = config.layout
    for name in ("num_sources", "num_batches", "num_plates", "num_sites", "num_cell_types"):
        _require(getattr(plan, name) >= 1, f"layout.{name}", getattr(plan, name), "at least 1")
    for name in ("num_mechanisms", "num_compounds", "replicates", "num_dmso", "num_poscon"):
        _require(getattr(plan, name) >= 0, f"layout.{name}", getattr(plan, name), "at least 0")
    for name in ("position_confound", "batch_confound"):
        value = getattr(plan, name)
        _require(0 <= value <= 1, f"layout.{name}", value, "a fraction from 0 to 1")
    wells = plan.num_treated + plan.num_dmso + plan.num_poscon
    _require(1 <= wells <= ROWS * COLUMNS, "the number of wells on a plate", wells, "from 1 to 384")
    _require(
        plan.num_poscon == 0 or plan.num_mechanisms * plan.num_compounds > 0,
        "layout.num_poscon",
        plan.num_poscon,
        "0 where there are no compounds",
    )
    doses = plan.doses_um
    _require(len(set(doses)) == len(doses), "layout.doses_um", doses, "distinct concentrations")
    _require(all(d > 0 for d in doses), "layout.doses_um", doses, "positive concentrations")
    _require(config.size >= 8, "size", config.size, "at least 8 pixels")
    _require(config.pixel_size_um > 0, "pixel_size_um", config.pixel_size_um, "positive")
    _require(config.strength >= 0, "strength", config.strength, "at least 0")
    depths = config.optics.bit_depths
    _require(
        len(depths) > 0 and all(2 <= d <= 16 for d in depths),
        "optics.bit_depths",
        depths,
        "one or more depths from 2 to 16 bits",
    )
    for name in ("density_per_mm2", "radius_um"):
        value = getattr(config.cells, name)
        _require(value > 0, f"cells.{name}", value, "positive")
    _require(
        config.cells.radius_um / config.pixel_size_um <= 128,
        "cells.radius_um / pixel_size_um",
        config.cells.radius_um / config.pixel_size_um,
        "at most 128 pixels",
    )
    correlation = config.effects.channel_correlation
    _require(0 <= correlation <= 1, "effects.channel_correlation", correlation, "from 0 to 1")
    for item in fields(config.effects):
        levels = getattr(config.effects, item.name)
        if isinstance(levels, Levels):
            values = (levels.source, levels.batch, levels.plate)
            _require(min(values) >= 0, f"effects.{item.name}", values, "three values from 0 up")
    return config


def _require(good: bool, name: str, value: object, range_: str) -> None:
    if not good:
        raise InputError(f"{name} is {value}", fix=f"give {range_}")
