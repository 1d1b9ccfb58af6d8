"""Random colours in training: brightness, contrast and saturation, or the amounts of the stains.

Both work on pixels in 0 to 1 (the range of the pixel type), before normalisation, with factors of
each image, for a whole batch at once.

Colour jitter is torchvision's without hue, for any number of channels: brightness and contrast are
drawn for each channel, since channels of a fluorescence image are lit and recorded one by one.

Stain jitter is Tellez et al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as
a reference to train distilled stain-invariant convolutional networks", IEEE TMI 2018, appendix B,
with the stains of Ruifrok and Johnston, "Quantification of histochemical staining by color
deconvolution", 2001. Where this file departs from it: pixels are taken in 0 to 1, so that an empty
white background stays white when stains are scaled (in 0 to 255 it would change most); and the
change is multiplied onto the pixel, so that no change is the identity to the last bit and black
stays black.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from evenfield.config import View
from evenfield.errors import InputError
from evenfield.seeds import generator

STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density in red, green and blue of hematoxylin, eosin and DAB (Ruifrok and Johnston)."""
LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601)."""
DARKEST = 1 / 255
"""Darker pixels count as this: black would have a density of any size, and outweigh its image."""


def recolour(unit: Float[Tensor, "n c h w"], view: View, *, seed: int) -> Float[Tensor, "n c h w"]:
    """The batch in random colours: stains first, then brightness, contrast and saturation.

    Args:
        unit: Pixels in 0 to 1; may be changed in place.
        view: `hed` and `colour` count here; 0 leaves the batch as it is.
        seed: Equal seeds give equal bits.

    Raises:
        InputError: A strength outside 0 to 1, or stain jitter without 3 channels.
    """
    for name, strength in (("colour", view.colour), ("hed", view.hed)):
        if not 0 <= strength <= 1:
            raise InputError(
                f"the view's {name} is {strength}", fix="choose a strength from 0 (off) to 1"
            )
    n, c = unit.shape[:2]
    if view.hed > 0:
        if c != 3:
            raise InputError(
                f"stain jitter (hed {view.hed}) on images of {c} channels: hematoxylin and eosin "
                "are told apart by red, green and blue",
                fix="set hed to 0, and use colour or jitter for other images",
            )
        gain, offset = deviations(view.hed, (2, n, 3), seed=seed, purpose="hed")
        unit = jitter_stains(unit, 1 + gain, offset)
    if view.colour > 0:
        factors = 1 + deviations(view.colour, (3, n, c), seed=seed, purpose="colour")
        brightness, contrast, saturation = factors.to(unit.device)
        unit = jitter_contrast(unit, brightness, contrast)
        if c == 3:
            unit = jitter_saturation(unit, saturation[:, 0])
    return unit


def deviations(
    strength: float, shape: tuple[int, ...], *, seed: int, purpose: str
) -> Float[Tensor, "*shape"]:
    """Numbers drawn evenly from -strength to strength."""
    return strength * (2 * torch.rand(shape, generator=generator(seed, purpose)) - 1)


def jitter_contrast(
    image: Float[Tensor, "n c h w"],
    brightness: Float[Tensor, "n c"],
    contrast: Float[Tensor, "n c"],
) -> Float[Tensor, "n c h w"]:
    """Brightness b, then contrast k around the mean m of image and channel: k b (x - m) + b m.

    Clipped to 0 to 1, once. In place.

    >>> x = torch.tensor([0.2, 0.4]).reshape(1, 1, 1, 2)
    >>> jitter_contrast(x, torch.tensor([[2.0]]), torch.tensor([[0.5]])).flatten()
    tensor([0.5000, 0.7000])
    """
    mean = image.mean((2, 3))
    gain = contrast * brightness
    offset = mean * (brightness - gain)
    return torch.addcmul(offset[..., None, None], image, gain[..., None, None], out=image).clamp_(
        0, 1
    )


def jitter_saturation(
    rgb: Float[Tensor, "n 3 h w"], factor: Float[Tensor, " n"]
) -> Float[Tensor, "n 3 h w"]:
    """Away from (factor > 1) or towards (< 1) the grey of equal brightness, clipped to 0 to 1.

    >>> jitter_saturation(torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1), torch.zeros(1)).flatten()
    tensor([0.2990, 0.2990, 0.2990])
    """
    red, green, blue = rgb.unbind(1)
    grey = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return torch.lerp(grey[:, None], rgb, factor[:, None, None, None]).clamp_(0, 1)


def jitter_stains(
    rgb: Float[Tensor, "n 3 h w"], gain: Float[Tensor, "n 3"], offset: Float[Tensor, "n 3"]
) -> Float[Tensor, "n 3 h w"]:
    """Every image with its stains S changed to gain S + offset, clipped to 0 to 1.

    With density D = -ln(x), the stains in the rows of M, and S = D M^-1:
    x' = exp(-(gain S + offset) M) = x exp(-(D M^-1 diag(gain - 1) M + offset M)),
    which takes one 3x3 matrix and one vector an image.

    Args:
        rgb: Transmitted light, 0 to 1.
        gain: Of hematoxylin, eosin and DAB; 1 = as it is.
        offset: Amount of each stain that is added everywhere, in natural-log optical density.

    >>> white = torch.ones(1, 3, 1, 1)  # hematoxylin of density 1 everywhere: exp(-0.65), ...
    >>> jitter_stains(white, torch.ones(1, 3), torch.tensor([[1.0, 0, 0]])).flatten()
    tensor([0.5220, 0.4966, 0.7483])
    """
    stains = torch.tensor(STAINS, dtype=torch.float64)
    matrix = torch.einsum("cs,ns,sd->ncd", stains.inverse(), gain.cpu().double() - 1, stains)
    shift = (offset.cpu().double() @ stains)[:, None]
    pixels = rgb.movedim(1, 3).flatten(1, 2)
    density = pixels.clamp(min=DARKEST).log().neg_()
    change = torch.baddbmm(shift.to(rgb), density, matrix.to(rgb))
    light = change.neg_().exp_().mul_(pixels).clamp_(0, 1)
    return light.unflatten(1, rgb.shape[2:]).movedim(3, 1)
