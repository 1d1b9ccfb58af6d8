"""The light that cells send: analytic profiles on a small window around each cell."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from evenfield.data.simulation.cells import Cells
from evenfield.data.simulation.config import CHANNELS
from evenfield.data.simulation.phenotypes import PHENOTYPE

_OPAQUE = 0.6  # how much of what lies below an overlapping cell hides


def draw(cells: Cells, size: int) -> Float[Tensor, "n 5 h w"]:
    """The light of n fields, in units of a typical cell's brightest region.

    The i-th cells of all fields are drawn together, one window for each, so no two writes of a
    pass meet: sums have one order on every device.
    """
    n, k = cells.alive.shape
    stretch = torch.sqrt(_trait(cells, "elongation")) * (1 + 1.75 * _trait(cells, "spikes"))
    reach = torch.where(cells.alive, cells.radius * stretch + 1, 0.0)
    margin = int(torch.ceil(reach.max())) + 1
    wide = size + 2 * margin
    light = torch.zeros(n, len(CHANNELS), wide, wide, device=reach.device)
    base = torch.floor(cells.centre)
    # A cell that cannot touch the field is not drawn; this also keeps windows on the canvas.
    inside = ((cells.centre + reach[..., None] > 0) & (cells.centre - reach[..., None] < size)).all(
        dim=-1
    )
    base = base.clamp(-1.0 * margin, size + margin - 1.0).long()
    for i in range(k):
        rows = torch.nonzero(cells.alive[:, i] & inside[:, i])[:, 0]
        for group in _by_reach(rows, reach[rows, i]):
            half = int(torch.ceil(reach[group, i].max()))
            patch, mask = _cell(cells, group, i, half)
            offset = torch.arange(-half, half + 1, device=reach.device) + margin
            y = (base[group, i, 0, None] + offset).clamp(0, wide - 1)
            x = (base[group, i, 1, None] + offset).clamp(0, wide - 1)
            _over(light, group, y, x, patch, mask)
    return light[:, :, margin : margin + size, margin : margin + size]


def _by_reach(rows: Tensor, reach: Float[Tensor, " m"]) -> list[Tensor]:
    """Small and large cells apart, so that one giant does not widen everyone's window."""
    if len(rows) < 16:
        return [rows] if len(rows) else []
    middle = reach.median()
    small = reach <= middle
    return [group for group in (rows[small], rows[~small]) if len(group)]


def _over(
    light: Float[Tensor, "n 5 s s"],
    rows: Tensor,
    y: Tensor,
    x: Tensor,
    patch: Float[Tensor, "m 5 p p"],
    mask: Float[Tensor, "m 1 p p"],
) -> None:
    """Lay patches over the canvas, in place."""
    n, channels, wide, _ = light.shape
    channel = torch.arange(channels, device=light.device)
    start = (rows[:, None] * channels + channel) * (wide * wide)
    index = start[:, :, None, None] + (y[:, :, None] * wide + x[:, None, :])[:, None]
    flat = light.view(-1)
    below = flat[index]
    flat[index] = below * (1 - _OPAQUE * mask) + patch


def _trait(cells: Cells, name: str) -> Float[Tensor, "n k"]:
    return cells.trait[..., PHENOTYPE.index(name)]


def _cell(
    cells: Cells, rows: Tensor, i: int, half: int
) -> tuple[Float[Tensor, "m 5 p p"], Float[Tensor, "m 1 p p"]]:
    """The i-th cells of some fields, each on its window, and their masks.

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

    def along(direction: Tensor, scale: Tensor | float) -> Tensor:
        """Coordinate along a direction, in units of `scale`."""
        return dx * (torch.cos(direction) / scale) + dy * (torch.sin(direction) / scale)

    def wave(direction: Tensor, period_px: Tensor, phase: Tensor) -> Tensor:
        """A plane wave's argument: from it textures are made."""
        return along(direction, period_px / (2 * math.pi)) + phase

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

    holes_at = torch.sin(wave(tilt + 0.7, 11.0 * um, detail[:, 4])) * torch.sin(
        wave(tilt + 2.2, 11.0 * um, detail[:, 5])
    )
    holes = 1 - trait["vacuoles"] * (2.5 * holes_at - 0.3).clamp(0, 1) * outside

    period = trait["er_period_um"] * um
    bend = torch.sin(wave(tilt + 1.1, 1.3 * period, detail[:, 6]))
    mesh = torch.sin(wave(tilt, period, detail[:, 7]) + bend) * torch.sin(
        wave(tilt + 1.7, period, detail[:, 8])
    )
    er = (0.9 * (1 - trait["er_ring"]) + 1.5 * trait["er_ring"] * ring) * body * holes
    er = er * (1 - 0.7 * nucleus) * (1 + 1.3 * trait["er_texture"] * mesh)

    rna = 0.55 * body * holes * (1 - 0.3 * nucleus) + nucleus * (
        0.2 + 0.9 * trait["nucleoli"] * spot
    )

    fibre = torch.sin(wave(angle + math.pi / 2, 7.0 * um, detail[:, 9]) + 0.5 * bend)
    cortex = (1 - (r - 0.86).abs() * 4.5).clamp(min=0) * mask
    to_golgi = detail[:, 10]
    reach = 0.12 * radius + 1.05 * n_radius
    gy, gx = dy - torch.sin(to_golgi) * reach, dx - torch.cos(to_golgi) * reach
    blob = (1 - (gy * gy + gx * gx) / (0.3 * radius + 0.5) ** 2).clamp(min=0)
    dots = torch.sin(wave(tilt + 0.3, 8.0 * um, detail[:, 11])) * torch.sin(
        wave(tilt + 1.9, 8.0 * um, detail[:, 12])
    )
    agp = 0.35 * body * holes * (1 + trait["fibres"] * fibre) * (1 - 0.4 * nucleus)
    agp = (
        agp
        + trait["cortex"] * cortex
        + mask
        * (0.9 * trait["golgi"] * blob + 0.9 * trait["granules"] * outside * dots.clamp(min=0))
    )

    period = trait["mito_period_um"] * um
    thread = wave(tilt + 2.6, period, detail[:, 13])
    turn = torch.sin(wave(tilt + 1.0, 1.9 * period, detail[:, 14]))
    across = torch.sin(wave(tilt + 1.05, period, detail[:, 15]))
    threads = 0.5 + 0.5 * torch.sin(thread + 1.5 * turn)
    points = 2.2 * (torch.sin(thread) * across).clamp(min=0)
    network = trait["mito_network"]
    mito = network * threads + (1 - network) * points
    mito = 0.4 * (1 - trait["mito_contrast"]) + 1.1 * trait["mito_contrast"] * mito
    spread = (1 - trait["mito_ring"]) * (0.5 + 0.5 * thickness) + 1.3 * trait["mito_ring"] * ring
    mito = mito * spread * mask * (1 - 0.85 * nucleus)

    patch = torch.stack([dna * mask, er, rna * mask, agp, mito], dim=1)
    return patch * cells.amount[rows, i].view(len(rows), -1, 1, 1), mask[:, None]


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
    n_radius = trait["nucleus"] * radius
    off = 0.12 * radius
    turn = detail[:, 1]
    ny, nx = torch.sin(turn) * off, torch.cos(turn) * off
    own = n_radius * (1 - 0.45 * pieces)
    aspect = torch.sqrt(trait["nucleus_elongation"])
    cos, sin = torch.cos(angle), torch.sin(angle)
    nearest = torch.full((1, 1, 1), 1e3, device=radius.device)
    spot = torch.zeros((1, 1, 1), device=radius.device)
    present = (torch.ones_like(pieces), torch.maximum(second, (pieces > 0.3).float()), pieces > 0.3)
    for piece in range(3):
        sign = (1.0, -1.0, 0.0)[piece]
        around = detail[:, 2] + piece * (2 * math.pi / 3)
        shift_y = (
            sin * sign * second * 1.08 * n_radius + torch.sin(around) * pieces * 1.1 * n_radius
        )
        shift_x = (
            cos * sign * second * 1.08 * n_radius + torch.cos(around) * pieces * 1.1 * n_radius
        )
        py, px = dy - (ny + shift_y), dx - (nx + shift_x)
        a = (px * cos + py * sin) / (own * aspect)
        b = (py * cos - px * sin) / (own / aspect)
        distance = a * a + b * b + 1e3 * (1 - present[piece].float())
        nearest = torch.minimum(nearest, distance)
        if piece < 2:
            spot = torch.maximum(spot, _nucleoli(trait, detail, a, b, distance))
    mask = ((1 - torch.sqrt(nearest)) * own + 0.5).clamp(0, 1)
    return nearest, mask, n_radius, spot


def _nucleoli(
    trait: dict[str, Tensor], detail: Tensor, a: Tensor, b: Tensor, distance: Tensor
) -> Tensor:
    """Three spots in the unit disk of one nucleus, which merge into one."""
    far = 0.55 * (1 - trait["nucleoli_merged"])
    size = trait["nucleolus_size"] * (1 + 0.4 * trait["nucleoli_merged"])
    spot = torch.zeros((1, 1, 1), device=a.device)
    for number in range(3):
        where = detail[:, 9] + number * (2 * math.pi / 3)
        ya, yb = a - torch.cos(where) * far, b - torch.sin(where) * far
        spot = torch.maximum(spot, (1 - (ya * ya + yb * yb) / (size * size)).clamp(min=0))
    return spot * (distance < 1).float()
