"""Several crops of each image, for methods that learn by comparing them: views of any channels.

Each image is moved to the device once, as stored integers; crops of one size are then cut, turned,
resampled and normalised together. A turn and a mirror are part of the coordinates at which an image
is read, normalisation and random shifts are one scale and one shift for each crop and channel: a
view costs one reading of its pixels and one multiplication.

Where this departs from the released codes of DINO, CDCL and CODA, and why: resampling is bilinear
on the device and not filtered first, as in albumentations (CDCL), which is harmless while a crop
shrinks less than twofold; mirrors and right-angle turns are drawn evenly from the symmetries that
the view allows, not one by one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from evenfield.config import Crops, View
from evenfield.data.colour import recolour
from evenfield.data.transforms import dihedral_codes, self_normalise
from evenfield.errors import InputError
from evenfield.seeds import derive, generator

NUM_GLOBAL = 2
TRIES = 10


def crop_sizes(view: View, height: int, width: int) -> tuple[int, int]:
    """Sides of global and local crops as the network sees them, in pixels.

    Raises:
        InputError: A side, the region or a scale cannot be had from images of this size.
    """
    crops = view.crops
    least = min(height, width)
    if crops.within is not None and not 1 <= crops.within <= least:
        raise InputError(
            f"crops within {crops.within} pixels of images of {height} x {width}",
            fix=f"set --view.crops.within from 1 to {least}, or none",
        )
    region = crops.within or least
    large = crops.global_side or min(view.crop or region, region)
    small = crops.local_side or max(1, large // 2)
    for name, side in (("global", large), ("local", small)):
        if side < 1 or (side > region and not crops.resize):
            raise InputError(
                f"{name} crops of {side} pixels from a region of {region}",
                fix=f"set --view.crops.{name}-side from 1 to {region}, or let crops be resized",
            )
        low, high = crops.global_scale if name == "global" else crops.local_scale
        if not 0 < low <= high:
            raise InputError(
                f"the scale of {name} crops is {low} to {high}",
                fix="give two shares above 0, the smaller one first",
            )
    if crops.num_local < 0:
        raise InputError(f"{crops.num_local} local crops", fix="give 0 or more")
    return large, small


def make_views(
    raw: Integer[Tensor, "m c h w"],
    scale: Float[Tensor, "m c"],
    shift: Float[Tensor, "m c"],
    view: View,
    *,
    num_sources: int,
    seed: int,
    train: bool,
    local: bool = True,
) -> tuple[Float[Tensor, "n 2 c g g"], Float[Tensor, "n l c s s"] | None]:
    """The global and local views of items that have one image, or two.

    With two images the first global view and the first half of the local ones are of the first.

    Args:
        raw: Unsigned integers on the device, cut to `view.crops.within`; with two images an item's
            lie one after the other.
        scale: Of `Normaliser.affine`.
        shift: Of `Normaliser.affine`.
        view: What to do.
        num_sources: 1 or 2 images an item.
        seed: Equal seeds give equal bits.
        train: Whether intensities are changed at random; crops are random in any case.
        local: Whether local views are wanted.

    Returns:
        Global views, and local ones (None where there are none); channels last in memory.

    Raises:
        InputError: See `crop_sizes`; or local crops that two images cannot share evenly.
    """
    large, small = crop_sizes(view, *raw.shape[2:])
    num_local = view.crops.num_local if local else 0
    if num_local % num_sources:
        raise InputError(
            f"{num_local} local crops of a pair of images", fix="set --view.crops.num-local even"
        )
    image = raw.to(torch.float32, memory_format=torch.channels_last)
    affine = (scale.to(image.device), shift.to(image.device))
    largest = float(torch.iinfo(raw.dtype).max)
    found = []
    for name, side, total in (("global", large, NUM_GLOBAL), ("local", small, num_local)):
        if total == 0:
            break
        each, own = total // num_sources, derive(seed, "views", name)
        crop = cut(image, view, each, side, name == "local", own)
        if train:
            crop = in_other_light(crop, *affine, view, largest, own, local=name == "local")
        else:
            crop = normalised(crop, *(a[:, None] for a in affine))
        if view.self_normalise:
            crop = self_normalise(crop)
        found.append(crop.unflatten(0, (-1, num_sources)).flatten(1, 2))
    return found[0], found[1] if len(found) > 1 else None


def cut(
    image: Float[Tensor, "m c h w"], view: View, num: int, side: int, local: bool, seed: int
) -> Float[Tensor, "m num c side side"]:
    """`num` random crops of each image, turned, in one reading; memory is (m, num, h, w, c)."""
    m, c, h, w = image.shape
    crops = view.crops
    code = dihedral_codes(m * num, view, seed).view(m, num)
    if crops.resize:
        scales = crops.local_scale if local else crops.global_scale
        box = random_boxes(m * num, h, w, scales, seed).view(m, num, 4)
    else:
        box = random_windows(m * num, h, w, side, seed).view(m, num, 4)
    box_mn4, code = box.to(image.device), code.to(image.device)
    unit = symmetries(side).to(image.device)[code]  # (m, num, side, side, 2) in 0 to 1
    yx = box_mn4[:, :, None, None, :2] + unit * box_mn4[:, :, None, None, 2:]
    if not crops.resize:
        y, x = yx.floor().long().unbind(-1)  # centres of pixels: nothing is interpolated
        place = torch.arange(m, device=image.device)[:, None, None, None]
        return image.permute(0, 2, 3, 1)[place, y, x].permute(0, 1, 4, 2, 3)
    size = torch.tensor([h, w], dtype=yx.dtype, device=yx.device)
    grid = (2 * yx / size - 1).flip(-1).flatten(1, 2)  # crops of an image below each other
    tall = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    tall = tall.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    return tall.view(m, num, side, side, c).permute(0, 1, 4, 2, 3)


def random_boxes(
    n: int, h: int, w: int, scale: tuple[float, float], seed: int
) -> Float[Tensor, "n 4"]:
    """Top, left, height and width in pixels of random parts of an image.

    The area is a share drawn evenly from `scale`, the ratio of the sides drawn evenly in its
    logarithm from 3/4 to 4/3. What does not fit is drawn again; after ten tries the whole image is
    taken, or of a long one its largest central part with such a ratio. So shares above 1 fail more
    often, and mean the whole image more often, as in the published pipelines that ask for them.
    """
    random = generator(seed, "boxes")
    share = torch.empty(n, TRIES).uniform_(*scale, generator=random)
    limit = math.log(4 / 3)
    ratio = torch.empty(n, TRIES).uniform_(-limit, limit, generator=random).exp()
    area = share * h * w
    height, width = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (height >= 1) & (height <= h) & (width >= 1) & (width <= w)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    chosen = torch.cat([height.gather(1, first), width.gather(1, first)], 1)
    whole = torch.tensor([min(h, w * 4 / 3), min(w, h * 4 / 3)]).round()
    size = torch.where(fits.any(1, keepdim=True), chosen, whole)
    room = torch.tensor([h, w]) - size
    corner = (torch.rand(n, 2, generator=random) * (room + 1)).floor().minimum(room)
    centred = torch.where(fits.any(1, keepdim=True), corner, (room / 2).floor())
    return torch.cat([centred, size], 1)


def random_windows(n: int, h: int, w: int, side: int, seed: int) -> Float[Tensor, "n 4"]:
    """Top, left, height and width in pixels of windows of a fixed side."""
    random = generator(seed, "windows")
    top = torch.randint(h - side + 1, (n,), generator=random)
    left = torch.randint(w - side + 1, (n,), generator=random)
    size = torch.full((n,), side)
    return torch.stack([top, left, size, size], 1).float()


def symmetries(side: int) -> Float[Tensor, "8 side side 2"]:
    """For each symmetry of the square: where (row, column) in 0 to 1 an output pixel is read.

    Code = (number of quarter turns) + 4 * (mirrored first), as in `transforms.turn`.
    """
    centre = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    found = []
    for code in range(8):
        r, c = [(y, x), (x, 1 - y), (1 - y, 1 - x), (1 - x, y)][code % 4]
        found.append(torch.stack([r, 1 - c if code >= 4 else c], -1))
    return torch.stack(found)


def in_other_light(
    crop: Float[Tensor, "m num c s s"],
    scale: Float[Tensor, "m c"],
    shift: Float[Tensor, "m c"],
    view: View,
    largest: float,
    seed: int,
    *,
    local: bool,
) -> Float[Tensor, "m num c s s"]:
    """Normalised crops whose intensities were changed at random, as the view says.

    On pixels in 0 to 1: colour and stain jitter, brightness (global crops), shift. Then the
    normalisation of the image; then the view's jitter.
    """
    m, num, c = crop.shape[:3]
    crops, random = view.crops, generator(seed, "light")
    if view.colour or view.hed:
        crop = recolour(crop.div_(largest).flatten(0, 1), view, seed=seed).unflatten(0, (m, num))
        scale, largest = scale * largest, 1.0
    if crops.brightness > 0 and not local:
        crop = brightened(crop.div_(largest), crops.brightness, random)
        scale, largest = scale * largest, 1.0
    gain, offset = (x.to(crop.device) for x in random_shift(m, num, c, crops, random))
    a = scale[:, None] * gain
    b = shift[:, None] + scale[:, None] * largest * offset
    if view.jitter > 0:
        noise = view.jitter * torch.randn(2, m, num, c, generator=random).to(crop.device)
        a, b = a * noise[0].exp(), b * noise[0].exp() + noise[1]
    return normalised(crop, a, b)


def random_shift(
    m: int, num: int, c: int, crops: Crops, random: torch.Generator
) -> tuple[Float[Tensor, "m num c"], Float[Tensor, "m num c"]]:
    """Gain and offset of each crop and channel, on pixels in 0 to 1; 1 and 0 where none is drawn.

    x * N(1, s) + N(0, s) for a share `shift_p` of the crops (Shift_Colors of CDCL).
    """
    drawn = torch.rand(m, num, 1, generator=random) < crops.shift_p
    noise = crops.shift * drawn * torch.randn(2, m, num, c, generator=random)
    return 1 + noise[0], noise[1]


def brightened(
    unit: Float[Tensor, "m num c s s"], strength: float, random: torch.Generator
) -> Float[Tensor, "m num c s s"]:
    """clip(x + N(0, s))^g of half of the channels, in place; g is N(1, s) within 1 - s to 1 + s.

    RandomIntensityBrightness of CODA; pixels stay in 0 to 1.
    """
    shape = (*unit.shape[:3], 1, 1)
    drawn = torch.rand(shape, generator=random) < 0.5
    offset, exponent = strength * torch.randn(2, *shape, generator=random) * drawn
    exponent = 1 + exponent.clamp(-strength, strength)
    unit.add_(offset.to(unit.device)).clamp_(0, 1)
    return unit.pow_(exponent.to(unit.device))


def normalised(
    crop: Float[Tensor, "m num c s s"], a: Float[Tensor, "m num c"], b: Float[Tensor, "m num c"]
) -> Float[Tensor, "m num c s s"]:
    """Scale a times x plus shift b, in place."""
    return crop.mul_(a[..., None, None]).add_(b[..., None, None])
