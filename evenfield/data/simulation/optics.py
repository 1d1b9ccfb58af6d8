"""From light to stored integers: the microscope and the camera, where most batch effects act.

In the order of the light path: bleed-through, point-spread function, vignetting, stain and exposure
gain, background, photon and read noise, the camera's response (gamma), saturation, bit depth.
"""

from __future__ import annotations

import math

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from evenfield.data.simulation import noise
from evenfield.data.simulation.cells import CAMERA, Fields
from evenfield.data.simulation.config import CHANNELS, SimulationConfig
from evenfield.data.simulation.effects import NEIGHBOURS


def expose(
    light: Float[Tensor, "n 5 h w"], config: SimulationConfig, known: Fields, plate: pd.DataFrame
) -> Tensor:
    """What the microscope stores: (n, 5, h, w) uint8, or uint16 in the camera's own units.

    Args:
        light: Light of the cells, in units of a typical cell's brightest region.
        config: The simulation.
        known: The fields' keys and edge effects.
        plate: The effects of each field's plate, one row for each field.
    """
    device = light.device

    def column(name: str) -> Float[Tensor, "n 1 1 1"]:
        values = torch.tensor(plate[name].to_numpy(), dtype=torch.float64, device=device)
        return values.float().view(-1, 1, 1, 1)

    def channels(name: str) -> Float[Tensor, "n 5 1 1"]:
        return torch.cat([column(f"{name}_{channel}") for channel in CHANNELS], dim=1)

    light = bleed(light, {pair: column(f"bleed_{pair[0]}_{pair[1]}") for pair in NEIGHBOURS})
    signal = blur(light, channels("blur") / column("pixel_size_um"))
    edge = (1 + known.edge).float().view(-1, 1, 1, 1)
    signal *= config.optics.exposure * channels("gain") * edge
    signal += channels("background")
    signal *= vignette(
        light.shape[-1], column("vignetting"), column("vignetting_y"), column("vignetting_x")
    )
    optics = config.optics
    shot, read = column("noise") ** 2 / optics.photons, (column("noise") * optics.read_noise) ** 2
    grain = noise.grain(known.field_key, CAMERA, signal[0].numel()).view(signal.shape)
    grain *= (signal * shot).add_(read).sqrt_()
    signal += grain
    # exp(g log x), since torch's pow differs in the last bit between the middle and the end of a
    # tensor, and a field's bits must not depend on its place in a chunk.
    signal.clamp_(1e-6, 1).log_().mul_(column("gamma")).exp_()
    return digitise(signal, column("bit_depth"), config.dtype)


def bleed(
    light: Float[Tensor, "n 5 h w"], fraction: dict[tuple[str, str], Float[Tensor, "n 1 1 1"]]
) -> Float[Tensor, "n 5 h w"]:
    """Add to each channel the stated fraction of its neighbours' light."""
    mixed = light.clone()
    for (source, into), share in fraction.items():
        a, b = CHANNELS.index(source), CHANNELS.index(into)
        mixed[:, b] += light[:, a] * share[:, 0]
    return mixed


def blur(
    light: Float[Tensor, "n c h w"], sigma_px: Float[Tensor, "n c 1 1"]
) -> Float[Tensor, "n c h w"]:
    """Gaussian blur with its own width for each image and channel; edges are repeated.

    Taps beyond three widths are exactly 0, so an image's bits do not depend on the widest of its
    companions (which sets the number of taps).
    """
    reach = math.ceil(3 * float(sigma_px.max()))
    if reach == 0:
        return light.clone()
    taps = [torch.ones_like(sigma_px)]
    for i in range(1, reach + 1):
        weight = torch.exp(-0.5 * (i / sigma_px.clamp(min=1e-3)) ** 2)
        taps.append(torch.where(i <= 3 * sigma_px, weight, 0.0))
    total = taps[0].clone()
    for tap in taps[1:]:
        total = total + 2 * tap
    for axis in (2, 3):
        size = light.shape[axis]
        index = torch.arange(-reach, size + reach, device=light.device).clamp(0, size - 1)
        padded = light.index_select(axis, index)
        light = light * (taps[0] / total)
        for i in range(1, reach + 1):
            both = padded.narrow(axis, reach - i, size) + padded.narrow(axis, reach + i, size)
            light += both.mul_(taps[i] / total)
    return light


def vignette(
    size: int,
    loss: Float[Tensor, "n 1 1 1"],
    centre_y: Float[Tensor, "n 1 1 1"],
    centre_x: Float[Tensor, "n 1 1 1"],
) -> Float[Tensor, "n 1 h w"]:
    """1 at its centre, falling with the square of the distance by `loss` at a centred corner."""
    place = torch.arange(size, device=loss.device, dtype=torch.float32)
    place = (2 * place + 1 - size) / size
    y, x = place.view(1, 1, -1, 1) - centre_y, place.view(1, 1, 1, -1) - centre_x
    return (1 - 0.5 * loss * (y * y + x * x)).clamp(min=0.05)


def digitise(
    signal: Float[Tensor, "n 5 h w"], bit_depth: Float[Tensor, "n 1 1 1"], dtype: str
) -> Tensor:
    """Round to the camera's levels; uint8 spreads them (at most 8 bits) over 0..255."""
    if dtype == "uint16":
        return (signal * (2**bit_depth - 1)).add_(0.5).to(torch.int32).to(torch.uint16)
    levels = 2 ** bit_depth.clamp(max=8) - 1
    level = (signal * levels).add_(0.5).floor_()
    return level.mul_(255 / levels).add_(0.5).to(torch.uint8)
