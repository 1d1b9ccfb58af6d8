"""Which cells lie in a field, where, and what they look like (no pixels yet)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evenfield.data.simulation import noise
from evenfield.data.simulation.config import CHANNELS, COLUMNS, ROWS, SimulationConfig
from evenfield.data.simulation.phenotypes import MECHANISMS, PHENOTYPE, TRAITS, hill
from evenfield.data.simulation.plan import keys, potency
from evenfield.seeds import numpy_generator

# Streams of the counter: one number for each thing that is drawn.
COUNT, PLACE, SIZE, ANGLE, AMOUNT, EFFECT, TRAIT, DETAIL, WELL, CAMERA = range(10)
NUM_DETAILS = 16
"""Uniform numbers of each cell for what `draw` leaves to chance (phases and directions)."""

_CELL = {name: i for i, name in enumerate(PHENOTYPE)}
_RELAXATIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The cells of n fields, padded to k of them.

    Attributes:
        alive: Which of the k exist.
        centre: y and x of the centre in pixels; may lie outside the field.
        radius: Radius in pixels.
        angle: Direction of the long axis in radians.
        amount: Light of each channel, 1 for a typical cell.
        trait: Phenotype, in the order of `PHENOTYPE`.
        detail: Uniform random numbers.
        pixel_size_um: Pixel size of the field's plate.
    """

    alive: Bool[Tensor, "n k"]
    centre: Float[Tensor, "n k 2"]
    radius: Float[Tensor, "n k"]
    angle: Float[Tensor, "n k"]
    amount: Float[Tensor, "n k 5"]
    trait: Float[Tensor, "n k f"]
    detail: Float[Tensor, "n k d"]
    pixel_size_um: Float[Tensor, " n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """What is known of n fields before cells are drawn; float64 columns on one device."""

    field_key: Int[Tensor, " n"]
    well_key: Int[Tensor, " n"]
    effect: Float[Tensor, " n"]
    mechanism: Int[Tensor, " n"]
    cell_type: Int[Tensor, " n"]
    edge: Float[Tensor, " n"]
    cell_density: Float[Tensor, " n"]
    cell_size: Float[Tensor, " n"]
    pixel_size_um: Float[Tensor, " n"]


def fields_of(
    config: SimulationConfig, manifest: pd.DataFrame, plate: pd.DataFrame, device: torch.device
) -> Fields:
    """The columns that cells depend on; `plate` holds the effects of each row's plate."""
    names = {name: i + 1 for i, name in enumerate(MECHANISMS)}
    labels = manifest["Metadata_Label"].fillna("")
    treated = zip(manifest["Metadata_Compound"], manifest["Metadata_Concentration"], strict=True)
    ec50 = {name: potency(config, name) for name in manifest["Metadata_Compound"].unique()}
    dose = [hill(um, ec50[name], config.mechanisms.hill) for name, um in treated]
    edge = [edge_weight(well) for well in manifest["Metadata_Well"]] * plate["edge"].to_numpy()
    types = manifest["Metadata_CellType"].str.rsplit("-", n=1).str[-1].astype(int) - 1

    def tensor(values: object) -> Tensor:
        return torch.as_tensor(np.array(values), device=device)

    return Fields(
        field_key=tensor(keys(config, manifest, site=True)),
        well_key=tensor(keys(config, manifest, site=False)),
        effect=tensor(dose).double() * config.mechanisms.effect_size,
        mechanism=tensor([names.get(label, 0) for label in labels]),
        cell_type=tensor(types),
        edge=tensor(edge),
        cell_density=tensor(plate["cell_density"]),
        cell_size=tensor(plate["cell_size"]),
        pixel_size_um=tensor(plate["pixel_size_um"]),
    )


def edge_weight(well: str) -> float:
    """How much of the edge effect a well feels: 1 in the outermost, halved by each step inwards.

    >>> edge_weight("A12"), edge_weight("B12"), edge_weight("H12") < 0.01
    (1.0, 0.5, True)
    """
    row, column = ord(well[0]) - 65, int(well[1:]) - 1
    return 0.5 ** min(row, column, ROWS - 1 - row, COLUMNS - 1 - column)


def sample(config: SimulationConfig, known: Fields) -> Cells:
    """Draw the cells of n fields. Each field's cells depend on its own row only."""
    key = known.field_key
    n, device = len(key), key.device
    size, options = config.size, config.cells
    base, targets = _tables(config, device)

    radius = options.radius_um * known.cell_size / known.pixel_size_um
    margin = 0.6 * radius
    side_mm = (size + 2 * margin) * known.pixel_size_um / 1000
    mean = options.density_per_mm2 * side_mm**2 * known.cell_density * (1 - 0.5 * known.edge)
    shift = known.effect * (targets[known.mechanism, _CELL["count"]])
    mean = mean * (1 + shift).clamp(min=0.05)
    well = noise.normal(known.well_key, WELL, 1 + len(CHANNELS)).double() * options.well_spread
    mean = mean * torch.exp(well[:, 0])
    # Cells exclude each other, so their number scatters less than Poisson's.
    draw = noise.normal(key, COUNT, 1)[:, 0].double()
    count = torch.round(mean + 0.7 * torch.sqrt(mean) * draw).clamp(min=1).long()
    k = int(count.max())
    alive = torch.arange(k, device=device) < count[:, None]

    def uniform(stream: int, width: int) -> Tensor:
        return noise.uniform(key, stream, k * width).view(n, k, width)

    def normal(stream: int, width: int) -> Tensor:
        return noise.normal(key, stream, k * width).view(n, k, width)

    # Parameters are computed in float64 and rounded once: float32 results then hardly depend on
    # which exp() the processor chose.
    respond = uniform(EFFECT, 2).double()
    responds = respond[..., 0] < config.mechanisms.responders
    scatter = 0.85 + 0.3 * respond[..., 1]
    effect = known.effect[:, None] * scatter * torch.where(responds, 1.0, 0.15)
    spread = torch.tensor([t.spread * (t.base or 1) for t in TRAITS.values()], device=device)
    trait = base[known.cell_type][:, None] + spread * normal(TRAIT, len(PHENOTYPE)).double()
    trait = (trait + effect[..., None] * targets[known.mechanism][:, None]).clamp(min=0)
    trait[..., _CELL["elongation"]].clamp_(1.0, 3.0)
    trait[..., _CELL["nucleus_elongation"]].clamp_(1.0, 2.5)
    trait[..., _CELL["spikes"]].clamp_(max=0.5)

    own = options.size_spread * normal(SIZE, 1)[..., 0].double()
    cell_radius = radius[:, None] * torch.exp(own) * trait[..., _CELL["size"]]
    amount = torch.exp(
        well[:, None, 1:] + options.intensity_spread * normal(AMOUNT, len(CHANNELS)).double()
    )
    place = uniform(PLACE, 4).double()
    centre = _place(place, cell_radius, alive, size, margin, options.clumping)
    return Cells(
        alive=alive,
        centre=centre.float(),
        radius=cell_radius.float(),
        angle=uniform(ANGLE, 1)[..., 0] * math.pi,
        amount=amount.float(),
        trait=trait.float(),
        detail=uniform(DETAIL, NUM_DETAILS),
        pixel_size_um=known.pixel_size_um.float(),
    )


def _tables(
    config: SimulationConfig, device: torch.device
) -> tuple[Float[Tensor, "t f"], Float[Tensor, "m f"]]:
    """Baseline of each cell type, and each mechanism's shift from the baseline at full effect."""
    types = []
    for number in range(config.layout.num_cell_types):
        draw = numpy_generator(config.seed, "cell type", number).standard_normal(len(PHENOTYPE))
        sway = 0.15 * draw * (number > 0)  # the first type is the baseline itself
        types.append([t.base * math.exp(s) for t, s in zip(TRAITS.values(), sway, strict=True)])
    shifts = [[0.0] * len(PHENOTYPE)]
    for mechanism in MECHANISMS.values():
        shifts.append([mechanism.targets.get(n, t.base) - t.base for n, t in TRAITS.items()])
    return (
        torch.tensor(types, dtype=torch.float64, device=device),
        torch.tensor(shifts, dtype=torch.float64, device=device),
    )


def _place(
    place: Float[Tensor, "n k 4"],
    radius: Float[Tensor, "n k"],
    alive: Bool[Tensor, "n k"],
    size: int,
    margin: Float[Tensor, " n"],
    clumping: float,
) -> Float[Tensor, "n k 2"]:
    """Centres: some cells beside an earlier one, the others anywhere; then overlaps relax.

    Sums over neighbours run in a loop, in one order, so that a field's bits never depend on how
    many fields are computed together.
    """
    n, k = radius.shape
    side = size + 2 * margin[:, None, None]
    centre = place[..., :2] * side - margin[:, None, None]
    centre[:, 0] = (0.15 + 0.7 * place[:, 0, :2]) * size  # no field is empty
    rows = torch.arange(n, device=radius.device)
    direction = 2 * math.pi * place[..., 2]
    step = torch.stack([torch.sin(direction), torch.cos(direction)], dim=-1)
    for i in range(1, k):
        joins = place[:, i, 3] < clumping
        parent = (place[:, i, 3] * 1e4 % 1 * i).long()
        touching = 0.8 * (radius[:, i] + radius[rows, parent])
        beside = centre[rows, parent] + touching[:, None] * step[:, i]
        centre[:, i] = torch.where(joins[:, None], beside, centre[:, i])
    apart = 0.95 - 0.3 * clumping
    for _ in range(_RELAXATIONS):
        push = torch.zeros_like(centre)
        for j in range(k):
            away = centre - centre[:, j : j + 1]
            distance = torch.sqrt(away[..., 0] ** 2 + away[..., 1] ** 2 + 1e-6)
            overlap = (apart * (radius + radius[:, j : j + 1]) - distance).clamp(min=0)
            overlap = torch.where(alive & alive[:, j : j + 1], overlap, 0.0)
            overlap[:, j] = 0
            push += (0.5 * overlap / distance)[..., None] * away
        centre = centre + 0.7 * push
    return centre
