"""Signal spaces: where stains and dyes add up, so that mixing them is a matrix product.

In brightfield the light that passes is multiplied by every stain, so its negative logarithm, the
absorbance, is a sum over stains (Beer and Lambert). In fluorescence the light itself is the sum.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from evenfield.errors import EvenfieldWarning, InputError

DARKEST = 1e-6
HIGHEST = 6.0
LOWEST = -0.2
"""Below 0, so that a pixel that is predicted too bright still gets a gradient."""


def to_absorbance(image: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """A = -log10(max(x, 1e-6)) of transmittance x, 0 to 6 for pixels in 0 to 1; in float32.

    >>> to_absorbance(torch.tensor([1.0, 0.1, 0.0]))
    tensor([-0., 1., 6.])
    """
    return -torch.log10(image.float().clamp(min=DARKEST))


def to_transmittance(absorbance: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The transmittance 10^-A, with A clipped to -0.2 .. 6; above 1 where A is below 0; in float32.

    >>> to_transmittance(torch.tensor([0.0, 1.0, -1.0]))
    tensor([1.0000, 0.1000, 1.5849])
    """
    return torch.pow(10.0, -absorbance.float().clamp(LOWEST, HIGHEST))


@dataclass(frozen=True, slots=True)
class Signal:
    """Images to what encoders see, and back.

    Attributes:
        absorbance: Brightfield: the signal is the absorbance. Fluorescence: the pixels themselves.
    """

    absorbance: bool

    def enter(self, image: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The float32 signal of pixels in 0 to 1."""
        return to_absorbance(image) if self.absorbance else image.float()

    def leave(self, signal: Float[Tensor, "*n"], *, clip: bool = True) -> Float[Tensor, "*n"]:
        """The float32 pixels of a signal, clipped to 0 to 1 unless told otherwise."""
        image = to_transmittance(signal) if self.absorbance else signal.float()
        return image.clamp(0, 1) if clip else image

    def check(self, image: Float[Tensor, "n c h w"]) -> None:
        """Refuse pixels that are clearly not in 0 to 1; warn of brightfield as dark as dyes.

        Jitter may lead a little outside: only values below -2 and above 3 are refused.
        """
        low, high, mean = torch.stack([*image.aminmax(), image.mean()]).tolist()
        if low < -2 or high > 3:
            raise InputError(
                f"pixels in 0 to 1 are wanted, these go from {low:.3g} to {high:.3g}",
                fix="normalise by the range of the pixel type (--view.normalise unit)",
            )
        if self.absorbance and mean < 0.25:
            warnings.warn(
                f"the mean pixel of a batch is {mean:.2g}, dark as in fluorescence, and "
                "absorbance is on: for fluorescence give --options.no-absorbance",
                EvenfieldWarning,
                stacklevel=3,
            )
