"""Whose statistics does a BatchNorm layer use? This room answers for 1d, 2d and 3d layers alike.

`normalising(model, rule)` replaces, for the length of a `with` block, what every BatchNorm layer
does by `rule(name, layer, x)`. Weights, buffers and train/eval mode stay untouched, and any model
made of torch's own layers can be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

Rule = Callable[[str, _BatchNorm, Tensor], Tensor]


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers by name, in the order of registration."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}


@contextmanager
def normalising(model: nn.Module, rule: Rule) -> Iterator[None]:
    """Inside the block every BatchNorm layer of `model` computes `rule(name, layer, x)`."""
    layers = batch_norms(model)
    try:
        for name, layer in layers.items():
            layer.forward = partial(rule, name, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers.values():
            del layer.__dict__["forward"]


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of one layer's input over a set of images.

    Attributes:
        num_images: How many images.
        mean: (c,) over images and pixels.
        var: (c,) biased variance over images and pixels.
        spread: (c,) biased variance over images of the images' own means (0 for one image).
    """

    num_images: int
    mean: Float[Tensor, " c"]
    var: Float[Tensor, " c"]
    spread: Float[Tensor, " c"]


def image_moments(
    x: Float[Tensor, "n c *pixels"],
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Mean and biased variance of every image and channel over its pixels.

    Computed in float32 at least (the mean of squares of bfloat16 would lose the variance), from
    centred values (the difference of two large squares would lose it too), and block by block:
    `torch.var_mean` is many times slower on a processor, and a centred copy of everything would
    leave its cache. Any memory format is read in place.
    """
    flat = x.flatten(2) if x.ndim > 2 else x[..., None]
    elements = 2**26 if x.is_cuda else 2**19
    rows = max(1, elements // max(1, flat[:1].numel()))
    means, variances = [], []
    for block in flat.split(rows):
        block = block if block.dtype == torch.float64 else block.float()
        mean = block.mean(2, keepdim=True)
        means.append(mean[..., 0])
        variances.append((block - mean).square().mean(2))
    return torch.cat(means), torch.cat(variances)


def gather(mean_nc: Float[Tensor, "n c"], var_nc: Float[Tensor, "n c"]) -> Moments:
    """The moments of a set of images from those of each image (law of total variance)."""
    spread, mean = torch.var_mean(mean_nc, dim=0, correction=0)
    return Moments(len(mean_nc), mean, var_nc.mean(0) + spread, spread)


def moments(x: Float[Tensor, "n c *pixels"]) -> Moments:
    """The moments of a non-empty set of images, each image weighing the same.

    >>> m = moments(torch.tensor([[[0.0, 2.0]], [[4.0, 6.0]]]))
    >>> m.mean.item(), m.var.item(), m.spread.item()
    (3.0, 5.0, 4.0)
    """
    return gather(*image_moments(x))


def pool(parts: Iterable[Moments]) -> Moments:
    """The moments of the union of sets, exact: between-set variance is counted.

    >>> part = lambda value: Moments(2, torch.tensor([value]), torch.ones(1), torch.zeros(1))
    >>> pool([part(0.0), part(4.0)]).var.item()  # 1 within + 4 between
    5.0
    """
    sets = list(parts)
    total = sum(m.num_images for m in sets)
    share = [m.num_images / total for m in sets]
    mean = sum_of(s * m.mean for s, m in zip(share, sets, strict=True))
    gap = [(m.mean - mean).square() for m in sets]
    var = sum_of(s * (m.var + g) for s, m, g in zip(share, sets, gap, strict=True))
    spread = sum_of(s * (m.spread + g) for s, m, g in zip(share, sets, gap, strict=True))
    return Moments(total, mean, var, spread)


def mix(a: Moments, b: Moments, weight: float | Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a mixture with share `weight` of `a` and the rest of `b`.

    The variance holds the between-group term `w (1 - w) (mean_a - mean_b)^2`.
    """
    mean = weight * a.mean + (1 - weight) * b.mean
    var = weight * a.var + (1 - weight) * b.var
    return mean, var + weight * (1 - weight) * (a.mean - b.mean).square()


def sum_of(items: Iterable[Tensor]) -> Tensor:
    """The sum of a non-empty run of tensors."""
    first, *rest = items
    for item in rest:
        first = first + item
    return first


def normalise(
    layer: _BatchNorm,
    x: Float[Tensor, "n c *pixels"],
    mean: Float[Tensor, " c"],
    var: Float[Tensor, " c"],
) -> Tensor:
    """Normalise with given statistics; gradient flows through them if they carry one."""
    if not (mean.requires_grad or var.requires_grad):
        # torch's kernel takes half-precision images with float32 parameters, but no other mixture
        like = x if layer.weight is None else layer.weight
        mean, var = (moment.to(like.device, like.dtype) for moment in (mean, var))
        return F.batch_norm(x, mean, var, layer.weight, layer.bias, False, 0.0, layer.eps)
    scale = torch.rsqrt(var + layer.eps)
    shift = -mean * scale
    if layer.affine:
        scale, shift = scale * layer.weight, shift * layer.weight + layer.bias
    axes = (1, -1, *([1] * (x.ndim - 2)))
    return x * scale.to(x.dtype).reshape(axes) + shift.to(x.dtype).reshape(axes)


def momentum_of(layer: _BatchNorm) -> float:
    """The weight of the newest statistics; None means the cumulative average, as in torch."""
    if layer.momentum is not None:
        return layer.momentum
    assert layer.num_batches_tracked is not None
    return 1.0 / max(float(layer.num_batches_tracked), 1.0)


@torch.no_grad()
def track(layer: _BatchNorm, mean: Tensor, var: Tensor, count: int) -> None:
    """Update the running statistics as torch does in train mode (unbiased variance)."""
    if layer.running_mean is None or layer.running_var is None:
        return
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    momentum = momentum_of(layer)
    unbiased = var * (count / max(count - 1, 1))
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
    layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), momentum)


def union_rule(name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
    """Statistics of all the images of the pass, whatever mode the layer is in; tracked in train."""
    del name
    tracks = layer.training and layer.track_running_stats and layer.running_mean is not None
    if tracks and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    return F.batch_norm(
        x,
        layer.running_mean if tracks else None,
        layer.running_var if tracks else None,
        layer.weight,
        layer.bias,
        True,
        momentum_of(layer) if tracks else 0.0,
        layer.eps,
    )


def subset_rule(keep: Bool[Tensor, " n"], *, gradient: bool = True) -> Rule:
    """Statistics of the images in `keep`, applied to all; with or without gradient through them."""

    def rule(name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
        del name
        with torch.no_grad():
            seen = moments(x[keep])
        if layer.training:
            track(layer, seen.mean, seen.var, seen.num_images * x[:1, 0].numel())
        if not (gradient and torch.is_grad_enabled()):
            return normalise(layer, x, seen.mean, seen.var)
        return _SubsetNorm.apply(x, layer.weight, layer.bias, seen, keep, layer.eps)

    return rule


class _SubsetNorm(torch.autograd.Function):
    """Normalisation whose statistics are those of some of the images, as one step of autograd.

    With y = gamma z + beta, z = (x - mean) / sqrt(var + eps) and m values a channel in the subset,
    the statistics add to the gradient of a value of the subset (and of no other)
    `-gamma / sqrt(var + eps) / m * (sum dy + z sum dy z)`, sums over all images: BatchNorm's own
    backward formula, with other sums than its. Written out because autograd's way, by broadcast
    products, makes a small network's step half as long again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        seen: Moments,
        keep: Tensor,
        eps: float,
    ) -> Tensor:
        like = x if weight is None else weight
        mean, var = (moment.to(like.device, like.dtype) for moment in (seen.mean, seen.var))
        ctx.save_for_backward(x, weight, mean, var, keep)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, keep = ctx.saved_tensors
        dx, sum_dy_z, sum_dy = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        chosen = x[keep]
        inverse = torch.rsqrt(var + ctx.eps)
        factor = inverse / (chosen.numel() // chosen.shape[1])
        factor = -factor if weight is None else -factor * weight
        slope = factor * sum_dy_z * inverse
        offset = factor * sum_dy - slope * mean
        axes = (1, -1, *([1] * (x.ndim - 2)))
        slope, offset = (part.to(x.dtype).reshape(axes) for part in (slope, offset))
        dx[keep] += torch.addcmul(offset, chosen, slope)
        if weight is None:
            return dx, None, None, None, None, None
        return dx, sum_dy_z, sum_dy, None, None, None


def set_statistics(layer: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    """Write statistics into a layer's buffers (used on copies only)."""
    like = mean if layer.running_mean is None else layer.running_mean
    with torch.inference_mode(False):  # buffers made in it could never take part in training
        layer.running_mean = mean.detach().to(like.dtype, copy=True)
        layer.running_var = var.detach().to(like.dtype, copy=True)
    layer.track_running_stats = True


def settle_rule(name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
    """Statistics of all the images of the pass, which the layer then keeps (copies only)."""
    del name
    seen = moments(x)
    set_statistics(layer, seen.mean, seen.var)
    return normalise(layer, x, seen.mean, seen.var)
