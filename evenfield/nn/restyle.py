"""New channel statistics for features: the family of DSU, MixStyle, EFDMix and ABRA.

An image's mean and standard deviation in a channel of an early layer say how it was stained and
exposed. `restyle` gives a map other ones, in one pass: every member of the family says only which.
Statistics are computed in float32 at least; the biased variance is used throughout, as the papers'
equations have it (torch's default, and the released code, is the unbiased one).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from evenfield.errors import EvenfieldWarning
from evenfield.nn.norm import image_moments, normalising
from evenfield.nn.places import changing
from evenfield.seeds import numpy_generator

EPS = 1e-6
Partner = Literal["random", "other-domain"]


def statistics(x: Float[Tensor, "n c *pixels"]) -> tuple[Tensor, Tensor]:
    """Mean and sigma = sqrt(var + 1e-6) of every image and channel, (n, c) each; differentiable.

    >>> mu, sigma = statistics(torch.tensor([[[1.0, 3.0]]]))
    >>> mu.item(), sigma.item()
    (2.0, 1.0000004768371582)
    """
    mean, var = _Moments.apply(x)
    return mean, (var + EPS).sqrt()


def spread(values: Float[Tensor, "n c"]) -> Float[Tensor, " c"]:
    """How far a statistic varies over a set: sqrt(biased variance over the rows + 1e-6).

    >>> spread(torch.tensor([[0.0], [2.0]])).item()
    1.0000004768371582
    """
    return (values.var(0, correction=0) + EPS).sqrt()


def restyle(
    x: Float[Tensor, "n c *pixels"],
    mu: Float[Tensor, "n c"],
    sigma: Float[Tensor, "n c"],
    new_mu: Float[Tensor, "n c"],
    new_sigma: Float[Tensor, "n c"],
) -> Float[Tensor, "n c *pixels"]:
    """The features `sigma' (x - mu) / sigma + mu'`, in the type of x.

    >>> x, two = torch.tensor([[[1.0, 3.0]]]), torch.full((1, 1), 2.0)
    >>> restyle(x, two, two / 2, 10 * two, two)  # mean 2, std 1 become mean 20, std 2
    tensor([[[18., 22.]]])
    """
    scale = new_sigma / sigma
    return _ScaleAndShift.apply(x, scale, new_mu - mu * scale)


def floored(
    new_sigma: Float[Tensor, "n c"], sigma: Float[Tensor, "n c"], floor: float | None
) -> Float[Tensor, "n c"]:
    """At least `floor` sigma, so that no channel flips its sign; None leaves it.

    >>> floored(torch.tensor([-3.0, 2.0]), torch.ones(2), 0.1)
    tensor([0.1000, 2.0000])
    """
    return new_sigma if floor is None else torch.maximum(new_sigma, floor * sigma)


def shifted(
    x: Float[Tensor, "n c *pixels"], shift: Float[Tensor, "n 2 c"], floor: float | None
) -> Float[Tensor, "n c *pixels"]:
    """Features with means moved by `shift[:, 0]` and standard deviations by `shift[:, 1]`."""
    mu, sigma = statistics(x)
    new_sigma = floored(sigma + shift[:, 1], sigma, floor)
    return restyle(x, mu, sigma, mu + shift[:, 0], new_sigma)


def style_mixed(
    x: Float[Tensor, "n c *pixels"], share: Float[Tensor, " n"], partner: Int[Tensor, " n"]
) -> Float[Tensor, "n c *pixels"]:
    """MixStyle: mu' = (1 - share) mu + share mu of the partner, sigma' likewise.

    Statistics, own and the partner's, are constants to the gradient. Zhou et al., "Domain
    generalization with MixStyle", ICLR 2021, Eqs. 3-5, with share = 1 - lambda.

    >>> x = torch.tensor([[[1.0, 3.0]], [[5.0, 9.0]]])  # mean 2, sigma 1; mean 7, sigma 2
    >>> style_mixed(x, torch.tensor([1.0, 0.0]), torch.tensor([1, 0])).flatten(1).round(decimals=3)
    tensor([[5., 9.],
            [5., 9.]])
    """
    with torch.no_grad():
        mu, sigma = statistics(x)
        other = share[:, None].to(mu.dtype)
        new_mu = torch.lerp(mu, mu[partner], other)
        new_sigma = torch.lerp(sigma, sigma[partner], other)
    return restyle(x, mu, sigma, new_mu, new_sigma)


def partners(
    domain: Int[Tensor, " n"], kind: Partner, random: np.random.Generator
) -> Int[Tensor, " n"]:
    """Whose statistics each item gets: a permutation, or a random item of another domain.

    Where there is no other domain, `other-domain` makes every item its own partner (it stays as
    it is) and warns.
    """
    if kind == "random":
        return torch.from_numpy(random.permutation(len(domain))).to(domain.device)
    code = domain.cpu().numpy()
    foreign = code[:, None] != code
    if not foreign.any():
        warnings.warn(
            "a batch of one domain holds no partner in another: its images are not mixed "
            "(--train.sampler domains draws several)",
            EvenfieldWarning,
            stacklevel=3,
        )
    # The largest of uniform keys, (0, 1] for those of other domains: each of them is as likely.
    drawn = (foreign * (1 - random.random(foreign.shape))).argmax(1)
    partner = np.where(foreign.any(1), drawn, np.arange(len(code)))
    return torch.from_numpy(partner).to(domain.device)


def mixing_shares(random: np.random.Generator, n: int, alpha: float) -> Float[Tensor, " n"]:
    """How much each item gets of its partner: draws of Beta(alpha, alpha), as 1 - lambda has."""
    return torch.from_numpy(random.beta(alpha, alpha, n).astype(np.float32))


def chosen(
    stages: Iterable[str], p: float, seed: int, method: str
) -> dict[str, np.random.Generator]:
    """The places that are changed in a batch, each with probability p, with a generator each."""
    drawn = {place: numpy_generator(seed, method, place) for place in stages}
    return {place: random for place, random in drawn.items() if random.random() < p}


def check_places(backbone: nn.Module, stages: Iterable[str]) -> None:
    """Refuse places that the backbone does not have, before the training starts.

    Raises:
        InputError: It has no such place, or names none at all.
    """
    with changing(backbone, dict.fromkeys(stages, nn.Identity())):
        pass


def widths(backbone: nn.Module, places: Iterable[str], channels: int) -> dict[str, int]:
    """The number of features at each place, seen on one image of zeros; nothing is changed by it.

    Raises:
        InputError: The backbone has no such place.
    """
    seen: dict[str, int] = {}

    def note(place: str) -> Callable[[Tensor], Tensor]:
        def look(x: Tensor) -> Tensor:
            seen[place] = x.shape[1]
            return x

        return look

    like = next(backbone.parameters())
    image = like.new_zeros(1, channels, 64, 64)
    watch = {place: note(place) for place in places}
    with (
        torch.no_grad(),
        normalising(backbone, lambda name, layer, x: x),  # no mode switched, no buffer touched
        changing(backbone, watch),
    ):
        backbone(image)
    return seen


class _Moments(torch.autograd.Function):
    """`image_moments` with its gradient in one pass, dx = dmean / m + 2 dvar (x - mean) / m."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = image_moments(x)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmean: Tensor, dvar: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        num_pixels = x[0, 0].numel()
        slope = dvar * (2 / num_pixels)
        offset = dmean / num_pixels - mean * slope
        return torch.addcmul(_over(offset, x), x, _over(slope, x))


class _ScaleAndShift(torch.autograd.Function):
    """x scale + shift, one scale and shift for every image and channel.

    Autograd's own backward forms full-size products for the gradients of scale and shift and costs
    two to three times as much; here they are summed block by block, in float32 at least.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return torch.addcmul(_over(shift, x), x, _over(scale, x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, scale = ctx.saved_tensors
        dx = dy * _over(scale, dy) if ctx.needs_input_grad[0] else None
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return dx, None, None
        dscale, dshift = torch.empty_like(scale), torch.empty_like(scale)
        rows = max(1, (2**26 if x.is_cuda else 2**18) // max(1, x[:1].numel()))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            dz = dy[part].flatten(2).to(scale.dtype)
            torch.sum(dz, 2, out=dshift[part])
            torch.sum(dz * x[part].flatten(2), 2, out=dscale[part])
        return dx, dscale, dshift


def _over(value_nc: Tensor, x: Tensor) -> Tensor:
    """A value for every image and channel, broadcast over the pixels, in the type of x."""
    return value_nc.to(x.dtype).reshape(*value_nc.shape, *([1] * (x.ndim - 2)))
