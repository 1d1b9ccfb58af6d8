"""The light that cells send: analytic profiles on a small window around each cell."""

from __future__ import annotations

import math
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evenfield.data.simulation.cells import Cells
from evenfield.data.simulation.config import CHANNELS
from evenfield.data.simulation.phenotypes import PHENOTYPE

_HIDDEN = 0.6  # how much of its light a pixel loses to each further cell that covers it
_UNIT = 1 << 18  # light is summed as integers: any order of the sum gives the same bits
_WINDOW_PIXELS = 1 << 15  # of all windows drawn in one go: torch splits longer loops over threads


def draw(cells: Cells, size: int) -> Float[Tensor, "n 5 h w"]:
    """The light of n fields, in units of a typical cell's brightest region.

    Cells of all fields are drawn together, those of like size in one go, and added up as integers:
    so a field's bits depend neither on its companions nor on the order in which a GPU adds.
    """
    n = len(cells.alive)
    stretch = torch.sqrt(_trait(cells, "elongation")) * (1 + 1.75 * _trait(cells, "spikes"))
    reach = cells.radius * stretch + 1
    centre, far = cells.centre, reach[..., None]
    seen = cells.alive & ((centre + far > 0) & (centre - far < size)).all(dim=-1)
    field, number = torch.nonzero(seen, as_tuple=True)
    if len(field) == 0:
        return torch.zeros(n, len(CHANNELS), size, size, device=reach.device)

    half = torch.ceil(reach[field, number]).long()
    wide = size + 2  # a frame of one pixel collects what falls outside the field
    total = torch.zeros(
        n * (len(CHANNELS) + 1) * wide * wide, dtype=torch.int32, device=reach.device
    )
    single = ~_several_nuclei(cells)[field, number]
    for pick in _groups(half, single):
        patch = _cell(cells, field[pick], number[pick], half=int(half[pick[-1]]))
        _add(total, field[pick], centre[field[pick], number[pick]], patch, wide)
    light = total.view(n, -1, wide, wide)[:, :, 1:-1, 1:-1] * (1.0 / _UNIT)
    cover = light[:, len(CHANNELS) :]
    return light[:, : len(CHANNELS)] / (1 + _HIDDEN * (cover - 1).clamp(min=0))


def _groups(half: Int[Tensor, " m"], single: Bool[Tensor, " m"]) -> list[Int[Tensor, " g"]]:
    """Cells to draw in one go, the largest last: of like size, and alike in having one nucleus."""
    groups = []
    for kind in (single, ~single):
        index = torch.nonzero(kind)[:, 0]
        index = index[torch.argsort(half[index], stable=True)]
        sides = (2 * half[index] + 1).tolist()
        start = 0
        for stop in range(1, len(sides) + 1):
            if stop == len(sides) or (stop + 1 - start) * sides[stop] ** 2 > _WINDOW_PIXELS:
                groups.append(index[start:stop])
                start = stop
    return groups


def _add(
    total: Int[Tensor, " pixels"],
    field: Int[Tensor, " m"],
    centre: Float[Tensor, "m 2"],
    patch: Float[Tensor, "m 6 p p"],
    wide: int,
) -> None:
    """Add patches to the canvas, in place."""
    channels, side = patch.shape[1], patch.shape[-1]
    window = torch.arange(side, device=field.device) + (1 - side // 2)
    place = (torch.floor(centre).long()[..., None] + window).clamp(0, wide - 1)
    y, x = place[:, 0], place[:, 1]
    plane = (field[:, None] * channels + torch.arange(channels, device=field.device)) * wide**2
    index = plane[:, :, None, None] + (y[:, :, None] * wide + x[:, None, :])[:, None]
    total.index_add_(0, index.view(-1), (patch * _UNIT).int().view(-1))


def _trait(cells: Cells, name: str) -> Float[Tensor, "n k"]:
    return cells.trait[..., PHENOTYPE.index(name)]


def _several_nuclei(cells: Cells) -> Bool[Tensor, "n k"]:
    """Cells with a second nucleus or with fragments."""
    return (cells.detail[..., 3] < _trait(cells, "second_nucleus")) | (
        _trait(cells, "fragments") > 0
    )


def _cell(
    cells: Cells, rows: Int[Tensor, " m"], i: Int[Tensor, " m"], half: int
) -> Float[Tensor, "m 6 p p"]:
    """Some cells, each on its window: five channels, and the mask.

    Coordinates: dy, dx in pixels from the centre; r = 1 at the outline; n2 = 1 at the outline of
    the nucleus (squared).
    """
    trait = {name: cells.trait[rows, i, j].view(-1, 1, 1) for j, name in enumerate(PHENOTYPE)}
    detail = cells.detail[rows, i].view(len(rows), -1, 1, 1) * (2 * math.pi)
    radius = cells.radius[rows, i].view(-1, 1, 1)
    um = 1.0 / cells.pixel_size_um[rows].view(-1, 1, 1)  # a micrometre in pixels
    angle = cells.angle[rows, i].view(-1, 1, 1)
    window = torch.arange(-half, half + 1, device=radius.device, dtype=torch.float32)
    centre = cells.centre[rows, i]
    place = centre - torch.floor(centre)
    dy = window.view(1, -1, 1) - place[:, 0].view(-1, 1, 1)
    dx = window.view(1, 1, -1) - place[:, 1].view(-1, 1, 1)

    def along(direction: Tensor, scale: Tensor, start: Tensor | float = 0.0) -> Tensor:
        """Coordinate along a direction, in units of `scale`, plus `start`."""
        return dx * (torch.cos(direction) / scale) + (dy * (torch.sin(direction) / scale) + start)

    def wave(direction: Tensor, period_px: Tensor, phase: Tensor) -> Tensor:
        """A plane wave's argument: from it textures are made."""
        return along(direction, period_px / (2 * math.pi), phase)

    # Outline: an ellipse with lobes, cos 3t and cos 5t written as polynomials of cos t.
    aspect = torch.sqrt(trait["elongation"])
    u = along(angle, radius * aspect)
    v = along(angle + math.pi / 2, radius / aspect)
    r = torch.sqrt(u * u + v * v) + 1e-6
    c = u / r
    c2 = c * c
    lobes = c * (4 * c2 - 3) * torch.cos(detail[:, 0]) + c * ((16 * c2 - 20) * c2 + 5) * 0.7
    r = r / (1 + trait["spikes"] * lobes)
    mask = ((1 - r) * radius + 0.5).clamp(0, 1)
    thickness = (1 - r * r).clamp(min=0)
    body = mask * (0.35 + 0.65 * thickness)

    n2, nucleus, n_radius, spot = _nucleus(trait, detail, radius, angle, dy, dx)
    ring = 1 / (1 + 0.6 * (n2 - 1).clamp(min=0))
    outside = 1 - nucleus

    tilt = detail[:, 1]
    grain = torch.sin(wave(tilt, 6.0 * um, detail[:, 2])) * torch.sin(
        wave(tilt + 1.4, 6.5 * um, detail[:, 3])
    )
    dna = nucleus * (0.7 + 0.3 * (1 - n2).clamp(min=0)) * (1 + trait["chromatin"] * grain)
    dna = dna * (1 + 0.6 * trait["fragments"])

    # Slow waves bend the fast ones: no lattices in cells.
    bend = torch.sin(wave(tilt + 1.1, 15.0 * um, detail[:, 6]))
    turn = torch.sin(wave(tilt + 2.9, 20.0 * um, detail[:, 14]))
    holes_at = torch.sin(wave(tilt + 0.7, 11.0 * um, detail[:, 4]) + bend) * torch.sin(
        wave(tilt + 2.2, 11.0 * um, detail[:, 5]) + turn
    )
    holes = 1 - trait["vacuoles"] * (2.5 * holes_at - 0.3).clamp(0, 1) * outside

    period = trait["er_period_um"] * um
    mesh = torch.sin(wave(tilt, period, detail[:, 7]) + bend) * torch.sin(
        wave(tilt + 1.7, period, detail[:, 8]) + turn
    )
    er = (0.9 * (1 - trait["er_ring"]) + 1.5 * trait["er_ring"] * ring) * body * holes
    er = er * (1 - 0.7 * nucleus) * (1 + trait["er_texture"] * (4 * mesh.clamp(min=0) - 0.8))

    rna = 0.55 * body * holes * (1 - 0.3 * nucleus) + nucleus * (
        0.2 + 0.9 * trait["nucleoli"] * spot
    )

    fibre = torch.sin(wave(angle + math.pi / 2, 7.0 * um, detail[:, 9]) + 0.5 * bend)
    cortex = (1 - (r - 0.86).abs() * 4.5).clamp(min=0) * mask
    to_golgi = detail[:, 10]
    reach = 0.12 * radius + 1.05 * n_radius
    gy, gx = dy - torch.sin(to_golgi) * reach, dx - torch.cos(to_golgi) * reach
    blob = (1 - (gy * gy + gx * gx) / (0.3 * radius + 0.5) ** 2).clamp(min=0)
    dots = torch.sin(wave(tilt + 0.3, 11.0 * um, detail[:, 11]) + turn) * torch.sin(
        wave(tilt + 1.9, 11.0 * um, detail[:, 12]) + bend
    )
    agp = 0.35 * body * holes * (1 + trait["fibres"] * fibre) * (1 - 0.4 * nucleus)
    agp = (
        agp
        + trait["cortex"] * cortex
        + mask
        * (0.9 * trait["golgi"] * blob + 0.9 * trait["granules"] * outside * dots.clamp(min=0))
    )

    period = trait["mito_period_um"] * um
    thread = torch.sin(wave(tilt + 2.6, period, detail[:, 13]) + 1.4 * turn)
    across = torch.sin(wave(tilt + 1.05, period, detail[:, 15]) + bend)
    threads = 0.5 + 0.5 * thread
    points = 2.2 * (thread * across).clamp(min=0)
    network = trait["mito_network"]
    mito = network * threads + (1 - network) * points
    mito = 0.4 * (1 - trait["mito_contrast"]) + 1.1 * trait["mito_contrast"] * mito
    spread = (1 - trait["mito_ring"]) * (0.5 + 0.5 * thickness) + 1.3 * trait["mito_ring"] * ring
    mito = mito * spread * mask * (1 - 0.85 * nucleus)

    amount = cells.amount[rows, i]
    light = (dna * mask, er, rna * mask, agp, mito)
    lit = [one * amount[:, c].view(-1, 1, 1) for c, one in enumerate(light)]
    return torch.stack([*lit, mask], dim=1)


def _nucleus(
    trait: dict[str, Tensor],
    detail: Tensor,
    radius: Tensor,
    angle: Tensor,
    dy: Tensor,
    dx: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared distance (1 at the outline), mask, radius in pixels, and the nucleoli.

    One nucleus, or two side by side, or three bright pieces: up to three ellipses, of which each
    pixel sees the nearest.
    """
    pieces = trait["fragments"]
    second = (detail[:, 3] < 2 * math.pi * trait["second_nucleus"]).float()
    broken = (pieces > 0).float()
    num = 1 if not bool((second + broken).any()) else 3
    n_radius = trait["nucleus"] * radius
    ny, nx = (f(detail[:, 1]) * 0.12 * radius for f in (torch.sin, torch.cos))
    own = n_radius * (1 - 0.45 * pieces)
    aspect = torch.sqrt(trait["nucleus_elongation"])
    cos, sin = torch.cos(angle), torch.sin(angle)
    absent = (torch.zeros_like(second), 1 - torch.maximum(second, broken), 1 - broken)
    distances: list[Tensor] = []
    spots: list[Tensor] = []
    for piece in range(num):
        side = (1.08, -1.08, 0.0)[piece] * second * n_radius
        around, burst = detail[:, 2] + piece * (2 * math.pi / 3), 1.1 * pieces * n_radius
        py = dy - (ny + sin * side + torch.sin(around) * burst)
        px = dx - (nx + cos * side + torch.cos(around) * burst)
        a = px * (cos / (own * aspect)) + py * (sin / (own * aspect))
        b = py * (cos * aspect / own) - px * (sin * aspect / own)
        distance = a * a + b * b + 1e3 * absent[piece]
        distances.append(distance)
        spots.append(_nucleoli(trait, detail, a, b, distance))
    nearest = reduce(torch.minimum, distances)
    spot = reduce(torch.maximum, spots)
    mask = ((1 - torch.sqrt(nearest)) * own + 0.5).clamp(0, 1)
    return nearest, mask, n_radius, spot


def _nucleoli(
    trait: dict[str, Tensor], detail: Tensor, a: Tensor, b: Tensor, distance: Tensor
) -> Tensor:
    """Three spots in the unit disk of one nucleus, which merge into one."""
    far = 0.55 * (1 - trait["nucleoli_merged"])
    size = trait["nucleolus_size"] * (1 + 0.4 * trait["nucleoli_merged"])
    near = distance.clamp(min=1e3)
    for number in range(3):
        where = detail[:, 9] + number * (2 * math.pi / 3)
        ya, yb = a - torch.cos(where) * far, b - torch.sin(where) * far
        near = torch.minimum(near, ya * ya + yb * yb)
    return (1 - near / (size * size)).clamp(min=0) * (distance < 1)
