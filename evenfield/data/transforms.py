"""What the network may see of an image: normalisation, crops, flips, rotations, random intensities.

A batch stays integer until it is on the device: `read` takes (cropped) rows from the memory map
into one contiguous array, `prepare` turns it there into normalised floats. Normalisation is one
scale and one shift for each image and channel, so that jitter costs nothing more.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from evenfield.config import View
from evenfield.data.colour import recolour
from evenfield.data.normalise import Normaliser
from evenfield.errors import InputError
from evenfield.seeds import generator, numpy_generator

__all__ = [
    "Normaliser",
    "View",
    "crop_sides",
    "dihedral_codes",
    "prepare",
    "read",
    "self_normalise",
    "turn",
]


def read(
    pixels: Integer[np.ndarray, "N c H W"],
    rows: Int[np.ndarray, " n"],
    view: View,
    *,
    seed: int,
    train: bool,
    out: np.ndarray | None = None,
) -> Integer[np.ndarray, "n c h w"]:
    """The pixels of some rows, cropped, in one contiguous array of the store's type.

    Args:
        pixels: The screen's memory map.
        rows: Rows of the manifest, in any order, repeated or not.
        view: Its crop is what counts here.
        seed: Equal seeds give equal crops.
        train: Whether crops are random; otherwise they are central.
        out: An array of at least n images to write into (its first n are returned): fresh memory
            costs more than reading does.

    Raises:
        InputError: The crop is larger than the image.
    """
    plain = np.asarray(pixels)  # slicing a memmap object costs several times the copy of a crop
    height, width = plain.shape[2:]
    h, w = crop_sides(view, height, width)
    shape = (len(rows), plain.shape[1], h, w)
    batch = np.empty(shape, plain.dtype) if out is None else out[: len(rows)]
    if batch.shape != shape or batch.dtype != plain.dtype:
        raise ValueError(f"out holds {batch.shape} {batch.dtype}, not {shape} {plain.dtype}")
    if (h, w) == (height, width):
        for item, row in zip(batch, rows, strict=True):
            item[...] = plain[row]
        return batch
    if train:
        random = numpy_generator(seed, "crop")
        tops = random.integers(0, height - h + 1, len(rows)).tolist()
        lefts = random.integers(0, width - w + 1, len(rows)).tolist()
    else:
        tops, lefts = [(height - h) // 2] * len(rows), [(width - w) // 2] * len(rows)
    for item, row, top, left in zip(batch, rows, tops, lefts, strict=True):
        item[...] = plain[row, :, top : top + h, left : left + w]
    return batch


def crop_sides(view: View, height: int, width: int) -> tuple[int, int]:
    """Height and width that `read` returns for images of a height and width, in pixels."""
    if view.crop is None:
        return height, width
    if not 1 <= view.crop <= min(height, width):
        raise InputError(
            f"a crop of {view.crop} pixels does not fit images of {height} x {width}",
            fix=f"choose a crop from 1 to {min(height, width)} pixels, or none",
        )
    return view.crop, view.crop


def prepare(
    raw: Integer[Tensor, "n c h w"],
    scale: Float[Tensor, "n c"],
    shift: Float[Tensor, "n c"],
    view: View,
    *,
    seed: int,
    train: bool,
) -> Float[Tensor, "n c h w"]:
    """Normalised, and in training augmented, float32 images, channels-last in memory.

    Args:
        raw: Unsigned integers on the device that the images are wanted on; left as it is.
        scale: Of `Normaliser.affine`.
        shift: Of `Normaliser.affine`.
        view: What to do.
        seed: Equal seeds give equal bits.
        train: Whether to augment.

    Raises:
        InputError: Rotations of images that are not square; stain jitter without 3 channels.
    """
    image = raw.to(torch.float32, memory_format=torch.channels_last)
    if image is raw:
        image = image.clone()
    scale, shift = scale.to(image.device), shift.to(image.device)
    if train:
        if view.colour or view.hed:
            largest = torch.iinfo(raw.dtype).max
            image = recolour(image.div_(largest), view, seed=seed)
            scale = scale * largest
        turn(image, dihedral_codes(len(raw), view, seed))
        if view.jitter > 0:
            noise = torch.randn(2, *scale.shape, generator=generator(seed, "jitter"))
            gain, offset = (view.jitter * noise).to(image.device)
            gain = gain.exp()
            scale, shift = scale * gain, shift * gain + offset
    torch.addcmul(shift[..., None, None], image, scale[..., None, None], out=image)
    return self_normalise(image) if view.self_normalise else image


def self_normalise(image: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """(x - mean) / (std + 1e-6) of each image and channel, in place; a constant one becomes 0.

    >>> self_normalise(torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]])).flatten().round(decimals=4)
    tensor([-1.,  1.,  0.,  0.])
    """
    image.sub_(image.mean((-2, -1), keepdim=True))
    return image.div_(image.square().mean((-2, -1), keepdim=True).sqrt_().add_(1e-6))


def dihedral_codes(n: int, view: View, seed: int) -> Int[Tensor, " n"]:
    """For each image one of the 8 symmetries of the square, drawn evenly from those allowed.

    A code is (number of quarter turns) + 4 * (mirrored first). Flips alone allow both mirrors and
    the half turn that they make together; rotations alone the four turns.
    """
    allowed = {
        (False, False): [0],
        (True, False): [0, 2, 4, 6],
        (False, True): [0, 1, 2, 3],
        (True, True): [0, 1, 2, 3, 4, 5, 6, 7],
    }[view.flips, view.rotations]
    drawn = torch.randint(len(allowed), (n,), generator=generator(seed, "dihedral"))
    return torch.tensor(allowed)[drawn]


def turn(image: Float[Tensor, "n c h w"], code: Int[Tensor, " n"]) -> None:
    """Apply to each image, in place, its symmetry of the square; one pass for each of the eight."""
    if image.shape[2] != image.shape[3] and bool((code % 2 == 1).any()):
        raise InputError(
            f"images of {image.shape[2]} x {image.shape[3]} pixels cannot be turned by 90 degrees",
            fix="set a square crop, or rotations to off",
        )
    for element in range(1, 8):
        chosen = (code == element).nonzero().flatten().to(image.device)
        if len(chosen):
            part = image[chosen]
            part = part.flip(3) if element >= 4 else part
            image[chosen] = part.rot90(element % 4, (2, 3))
